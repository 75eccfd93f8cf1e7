"""Several replicas and workers give the results of one device on the whole batch.

Each training runs in separate processes: logical devices must be made first, and a process does not
recover from a failed exchange.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tf_mcvae_commands.cluster import Worker, this_worker

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "distribute"


def start(*words, index=None, ports=(), **kwargs):
    """Starts a Python process; with `ports`, as the worker `index` of a cluster on these ports."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1"}
    if ports:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = {"type": "worker", "index": index}
        environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **kwargs)


def finish(*processes, code=0, timeout=240):
    """Waits for processes, and returns what they printed."""
    try:
        texts = ["".join(process.communicate(timeout=timeout)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == code, text[-3000:]
    return texts


def free_ports(count=2):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def train(folder, case, devices, options):
    """Trains in one process, or in two workers; returns the results of each."""
    ports = free_ports() if devices == "workers" else [None]
    paths = [folder / f"{devices}-{index}.npz" for index in range(len(ports))]
    script, text = FOLDER / "trained.py", json.dumps(options)
    processes = [
        start(script, case, devices, path, text, index=index, ports=ports if ports[0] else ())
        for index, path in enumerate(paths)
    ]
    finish(*processes)
    return [dict(np.load(path)) for path in paths]


def assert_same(values, expected, rtol=2e-5, atol=1e-5):
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol, atol, err_msg=name)


# Two replicas in one process.


@pytest.mark.parametrize("case", ["VAE", pytest.param("LMCVAE-variance", marks=pytest.mark.slow)])
def test_two_replicas_give_one_devices_weights(case, tmp_path):
    """With a penalty, example weights, skipped updates, and batches of 8, 8 and 1 examples."""
    options = {"num": 17, "weighted": True, "skip_gradient_norm": 2.5}
    (one,) = train(tmp_path, case, "one", options)
    (two,) = train(tmp_path, case, "mirrored", options)
    assert_same(two, one)
    skipped = one["history_skipped"]
    assert 0 < sum(skipped) < 6  # Some of the six updates, not all.
    assert np.ptp(one["history_loss"]) > 1e-3


REPLICAS = [
    ("LMCVAE-acceptance", {"optimizer": {"global_clipnorm": 1.0}}),
    ("LMCVAE-acceptance", {"jit_compile": True, "skip_gradient_norm": 2.0}),
    ("LMCVAE-variance", {"num": 17}),
    ("LMCVAE-variance", {"num": 17, "cores": 2}),
    ("LMCVAE-variance-S=1", {"num": 17}),  # The last batch is one state, on one of the replicas.
    ("LMCVAE-learned", {"optimizer": {"clipvalue": 0.1}}),
    ("AMCVAE", {"num": 20}),
    ("VAE", {"run_eagerly": True, "weighted": True}),
    ("VAE", {"optimizer": {"clipnorm": 0.3}}),
    ("IWAE", {"jit_compile": True}),
    ("FlowVAE", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "options"), REPLICAS, ids=str)
def test_replicas(case, options, tmp_path):
    (one,) = train(tmp_path, case, "one", options)
    (two,) = train(tmp_path, case, "mirrored", options)
    assert_same(two, one)


@pytest.mark.slow
def test_a_mirrored_model_is_saved_loaded_exported_and_resumed(tmp_path):
    finish(start(FOLDER / "mirrored.py", tmp_path))


# Two workers.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("LMCVAE-variance", {"num": 17, "weighted": True, "skip_gradient_norm": 2.5}),
        ("LMCVAE-acceptance", {"jit_compile": True, "optimizer": {"global_clipnorm": 1.0}}),
    ],
    ids=str,
)
def test_two_workers_give_one_devices_weights(case, options, tmp_path):
    (one,) = train(tmp_path, case, "one", options)
    for results in train(tmp_path, case, "workers", options):
        assert_same(results, one)


@pytest.mark.slow
def test_workers_share_the_scoring(tmp_path):
    """Every worker returns the estimates and error bars of a single process."""
    folders = [tmp_path / name for name in ("alone", "first", "second")]
    for folder in folders:
        folder.mkdir()
    paths = [folder / "scores.npz" for folder in folders]
    finish(start(FOLDER / "scored.py", "alone", paths[0]))
    ports = free_ports()
    finish(
        *(
            start(FOLDER / "scored.py", "workers", path, index=index, ports=ports)
            for index, path in enumerate(paths[1:])
        )
    )
    alone, *shared = (dict(np.load(path)) for path in paths)
    for results in shared:
        assert_same(results, alone)
    # Each has scored a part of the 21 examples.
    parts = [dict(np.load(next(folder.glob("ais-*.npz")))) for folder in folders[1:]]
    sizes = [part["columns"].shape[1] for part in parts]
    assert min(sizes) > 0
    assert sum(sizes) == 21


RUNS = ("run", "alone")
RUN = ("--epochs", 12, "--limit-train-batches", 4, "--no-score", "--no-export")


def start_run(folder, strategy, name="run", index=0, ports=(), flags=RUN):
    command = ("train_keras.py", "--strategy", strategy, "--name", name, "--output-dir", folder)
    return start(*command, *flags, index=index, ports=ports)


def weights_of(folder):
    """The saved weights of a finished run, and the variables of its optimizer."""
    import tf_mcvae

    model = tf_mcvae.models.load_model(folder / "model.keras")
    return [w.numpy() for w in (*model.weights, *model.optimizer.variables)]


def check_damage_is_named(folder):
    """The chief says what is wrong with the checkpoint, and the other worker ends too."""
    checkpoint = folder / "run" / "checkpoint.keras"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    ports = free_ports()
    chief, other = (start_run(folder, "multiworker", index=i, ports=ports) for i in range(2))
    (text,) = finish(chief, code=2)
    assert "The file is damaged" in text
    finish(other, code=os.EX_TEMPFAIL)
    checkpoint.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_continues_after_a_worker_is_lost(lost, tmp_path):
    """It ends with the weights of an uninterrupted run on one device."""
    finish(start_run(tmp_path, "mirrored", "alone"))
    ports, history = free_ports(), tmp_path / "run" / "history.csv"
    workers = [start_run(tmp_path, "multiworker", index=i, ports=ports) for i in range(2)]
    deadline = time.monotonic() + 120
    while not history.exists() or len(history.read_text().splitlines()) < 4:
        assert time.monotonic() < deadline, [worker.poll() for worker in workers]
        time.sleep(0.05)
    workers[lost].send_signal(signal.SIGKILL)
    (text,) = finish(workers[1 - lost], code=os.EX_TEMPFAIL)
    assert "another worker is gone" in text
    workers[lost].communicate()
    assert not (tmp_path / "run" / "metrics.json").exists()
    if lost == 0:
        check_damage_is_named(tmp_path)
    ports = free_ports()
    texts = finish(*(start_run(tmp_path, "multiworker", index=i, ports=ports) for i in range(2)))
    assert "Resuming after epoch" in texts[0]
    assert "epoch" not in texts[1]  # Only the chief prints.
    resumed, expected = (weights_of(tmp_path / name) for name in RUNS)
    assert len(resumed) == len(expected)
    for value, other in zip(resumed, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)
    rows = [(tmp_path / name / "history.csv").read_text().splitlines() for name in RUNS]
    assert len(rows[0]) == len(rows[1]) == 13


@pytest.mark.slow
def test_a_finished_run_is_scored_by_workers_and_not_trained_again(tmp_path):
    flags = ("--epochs", 1, "--limit-train-batches", 2, "--no-export", "--score-examples", 40)
    flags += ("--ais-temperatures", 5, "--iwae-samples", 20)
    finish(start_run(tmp_path, "mirrored", "alone", flags=flags))
    ports = free_ports()
    workers = (start_run(tmp_path, "multiworker", "run", i, ports, flags) for i in range(2))
    finish(*workers)
    scores = [json.loads((tmp_path / n / "metrics.json").read_text())["scores"] for n in RUNS]
    for key in ("bound", "elbo", "iwae", "ais"):
        values = [[score[key][name] for name in ("mean", "standard_error")] for score in scores]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    (text,) = finish(start_run(tmp_path, "multiworker", "run", 0, free_ports(), flags))
    assert "is finished" in text


# The worker that TF_CONFIG names.

CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}


@pytest.mark.parametrize(
    ("cluster", "task", "expected"),
    [
        (CLUSTER, ("chief", 0), Worker(0, 3)),
        (CLUSTER, ("worker", 1), Worker(2, 3)),
        ({"worker": ["a:1", "b:1"]}, ("worker", "1"), Worker(1, 2)),
    ],
)
def test_worker_of_tf_config(cluster, task, expected, monkeypatch):
    text = json.dumps({"cluster": cluster, "task": {"type": task[0], "index": task[1]}})
    monkeypatch.setenv("TF_CONFIG", text)
    assert this_worker("multiworker") == expected
    assert this_worker("multiworker").is_chief == (expected.index == 0)
    assert this_worker("none") == this_worker("mirrored") == Worker(0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"cluster": {}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_wrong_tf_config_is_refused(text, monkeypatch, capsys):
    from tf_mcvae_commands import evaluate
    from tf_mcvae_commands import train as cli

    monkeypatch.setenv("TF_CONFIG", text)
    for command in (
        lambda: cli.main(["--strategy", "multiworker", "--name", "run"]),
        lambda: evaluate.main([str(ROOT / "x.keras"), "--data=digits", "--strategy=multiworker"]),
    ):
        assert command() == 2
        assert "needs the environment variable TF_CONFIG" in capsys.readouterr().err


def test_workers_must_agree_on_a_name(monkeypatch, capsys):
    from tf_mcvae_commands import train as cli

    task = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1"]}, "task": task}))
    assert cli.main(["--strategy", "multiworker"]) == 2
    assert "needs --name" in capsys.readouterr().err


# Private methods of Keras.


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (keras.optimizers.Optimizer, "_clip_gradients"),
        (keras.Model, "_clear_losses"),
        (keras.Model, "_flatten_layers"),
        (keras.Model, "_maybe_symbolic_build"),
        (keras.Model, "_get_metrics_result_or_logs"),
    ],
)
def test_keras_still_has_what_is_private_to_it(owner, name):
    """Without them the package would fail or give wrong results on several replicas."""
    assert callable(getattr(owner, name))
