"""The contract that every model keeps: training as Keras trains, saving, seeds, checks of input.

Adding a model is adding a line to `CASES`.
"""

import csv
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import keras
import memory
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae import (
    AMCVAE,
    BNAF,
    CMCDVAE,
    DAISVAE,
    HVAE,
    IAF,
    IWAE,
    LDVIVAE,
    LMCVAE,
    MCDVAE,
    UHAVAE,
    VAE,
    DriftNetwork,
    FlowVAE,
    Gaussian,
    LearnedReverse,
    MomentumRefresh,
    RealNVP,
    StepSize,
    random,
)
from tf_mcvae.models.annealed import AnnealedVAE
from tf_mcvae.models.batch import Batch

SHAPE, LATENT_DIM, K = (4, 4, 1), 2, 2


def dense(**kwargs):
    options = {"architecture": "dense", "hidden_units": (8,), **kwargs}
    return tf_mcvae.Encoder(LATENT_DIM, **options), tf_mcvae.Decoder(SHAPE, **options)


def sequential(shape=SHAPE):
    layers = keras.layers
    encoder = keras.Sequential(
        [layers.Flatten(), layers.Dense(8, "tanh"), layers.Dense(2 * LATENT_DIM)]
    )
    decoder = keras.Sequential(
        [layers.Dense(8, "tanh"), layers.Dense(math.prod(shape)), layers.Reshape(shape)]
    )
    return encoder, decoder


def functional():
    x, z = keras.Input(SHAPE), keras.Input([LATENT_DIM])
    encoder, decoder = sequential()
    return keras.Model(x, encoder(x)), keras.Model(z, decoder(z))


@keras.saving.register_keras_serializable("test_models")
class OwnNetwork(keras.Model):
    """A user's network: layers made in `__init__`, and no `build`."""

    def __init__(self, output_shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = list(output_shape)
        self.flatten, self.hidden = keras.layers.Flatten(), keras.layers.Dense(8, "tanh")
        self.last = keras.layers.Dense(math.prod(output_shape))
        self.reshape = keras.layers.Reshape(output_shape)

    def call(self, x):
        return self.reshape(self.last(self.hidden(self.flatten(x))))

    def get_config(self):
        return {**super().get_config(), "output_shape": self.shape}


CASES = {
    "VAE": lambda: VAE(*dense()),
    "VAE-gaussian": lambda: VAE(*dense(), likelihood="gaussian", num_samples=3),
    "VAE-gaussian-learned": lambda: VAE(*dense(), likelihood=Gaussian(0.7, learned=True)),
    "IWAE": lambda: IWAE(*dense(), num_samples=3),
    "IWAE-stl": lambda: IWAE(*dense(), num_samples=3, gradient="stl"),
    "IWAE-dreg": lambda: IWAE(*dense(), num_samples=3, gradient="dreg"),
    "IWAE-functional": lambda: IWAE(*functional(), num_samples=3),
    "FlowVAE-realnvp": lambda: FlowVAE(*dense(), flow=RealNVP((4,)), num_flows=2),
    "FlowVAE-iaf": lambda: FlowVAE(*dense(), likelihood="gaussian", flow=IAF((4,)), num_samples=3),
    "FlowVAE-bnaf": lambda: FlowVAE(*dense(), flow=BNAF((4, 4)), num_flows=3),
    "LMCVAE": lambda: LMCVAE(*dense(), num_transitions=K, num_samples=3),
    "LMCVAE-sigmoidal": lambda: LMCVAE(*dense(), num_transitions=K, schedule="sigmoidal"),
    "LMCVAE-all-learnable": lambda: LMCVAE(*dense(), num_transitions=K, schedule="all_learnable"),
    "LMCVAE-cloned": lambda: LMCVAE(*dense(), num_transitions=K, cloned_decoder=True),
    "LMCVAE-learned": lambda: LMCVAE(
        *dense(), num_transitions=K, step_size=StepSize(0.05, "learned")
    ),
    "LMCVAE-acceptance": lambda: LMCVAE(
        *dense(), num_transitions=K, step_size=StepSize([0.01, 0.3], "acceptance", 0.95)
    ),
    "LMCVAE-variance": lambda: LMCVAE(
        *dense(), num_transitions=K, step_size=StepSize(0.05, "variance")
    ),
    "LMCVAE-skip": lambda: LMCVAE(*dense(), num_transitions=K, step_size=0.5, skip_threshold=0.9),
    "LMCVAE-per-dimension": lambda: LMCVAE(*dense(), num_transitions=K, step_size=[[0.05, 0.1]]),
    "LMCVAE-learned-drift": lambda: LMCVAE(*dense(), num_transitions=K, learned_drift=True),
    "LMCVAE-learned-reverse": lambda: LMCVAE(
        *dense(), num_transitions=K, num_samples=2, learned_reverse=LearnedReverse([8])
    ),
    "LMCVAE-vectors": lambda: LMCVAE(
        *sequential((5,)),
        likelihood=Gaussian(0.7, learned=True),
        num_transitions=K,
        cloned_decoder=True,
        recompute=True,
    ),
    "LMCVAE-dreg": lambda: LMCVAE(
        *dense(), num_transitions=K, num_samples=3, gradient="dreg", step_size=0.05
    ),
    "UHAVAE": lambda: UHAVAE(*dense(), num_transitions=K, num_samples=2),
    "UHAVAE-everything-learned": lambda: UHAVAE(
        *dense(),
        num_transitions=K,
        num_leapfrog_steps=2,
        schedule="all_learnable",
        step_size=StepSize(0.1, "learned"),
        momentum=MomentumRefresh(0.5, [0.8, 1.3], learn_persistence=True, learn_mass=True),
    ),
    "DAISVAE": lambda: DAISVAE(*dense(), num_transitions=K, schedule="all_learnable"),
    "LDVIVAE": lambda: LDVIVAE(*dense(), num_transitions=K, network=DriftNetwork([8])),
    "MCDVAE": lambda: MCDVAE(*dense(), num_transitions=K, network=DriftNetwork([8])),
    "CMCDVAE": lambda: CMCDVAE(*dense(), num_transitions=K, network=DriftNetwork([8])),
    "CMCDVAE-log-variance": lambda: CMCDVAE(
        *dense(), num_transitions=K, num_samples=3, objective="log_variance"
    ),
    "HVAE": lambda: HVAE(*dense(), num_transitions=K),
    "HVAE-free": lambda: HVAE(*dense(), num_transitions=K, step_size=0.1, tempering="free"),
    "AMCVAE": lambda: AMCVAE(*dense(), num_transitions=K, num_samples=3, step_size=0.2),
    "AMCVAE-barker": lambda: AMCVAE(
        *dense(), num_transitions=K, num_samples=3, acceptance="barker", schedule="sigmoidal"
    ),
    "AMCVAE-annealed": lambda: AMCVAE(
        *sequential(), num_transitions=K, num_samples=3, step_size=0.2, alpha_annealing=True
    ),
    "AMCVAE-coupled": lambda: AMCVAE(
        *dense(), num_transitions=K, num_samples=1, step_size=0.2, gradient="coupled"
    ),
    "AMCVAE-subclassed": lambda: AMCVAE(
        OwnNetwork([2 * LATENT_DIM]),
        OwnNetwork(SHAPE),
        num_transitions=K,
        num_samples=2,
        cloned_decoder=True,
    ),
}

# Variants of other cases, whose own part is also tested elsewhere.
SLOW = {
    "VAE-gaussian",
    "IWAE-stl",
    "FlowVAE-iaf",
    "FlowVAE-bnaf",
    "LMCVAE-sigmoidal",
    "LMCVAE-all-learnable",
    "LMCVAE-cloned",
    "LMCVAE-learned",
    "LMCVAE-variance",
    "LMCVAE-skip",
    "LMCVAE-per-dimension",
    "LMCVAE-dreg",
    "HVAE-free",
    "VAE",
    "IWAE-dreg",
    "IWAE-functional",
    "LMCVAE-learned-drift",
    "LMCVAE-vectors",
    "UHAVAE",
    "CMCDVAE-log-variance",
    "AMCVAE-barker",
    "AMCVAE-annealed",
    "AMCVAE-coupled",
}
each_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)

# One case of each way to draw and to save.
FEW = ("IWAE", "FlowVAE-realnvp", "LMCVAE", "UHAVAE-everything-learned", "CMCDVAE", "AMCVAE")
few_cases = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FEW)) for case in CASES]
)

_rng = np.random.default_rng(0)
# A pattern with some of its pixels flipped, which all models begin to learn in two steps.
_pattern = np.arange(16).reshape(SHAPE) % 3 == 0
X = (_pattern ^ (_rng.uniform(size=[16, *SHAPE]) < 0.1)).astype(np.float32)
VECTORS = (1.5 + 0.5 * _rng.normal(size=[16, 5])).astype(np.float32)


def data(case):
    return VECTORS if case.endswith("vectors") else X


def make(case="VAE", init=0, **compile_options):
    """A built and compiled model; `init` is the seed of its weights."""
    keras.utils.set_random_seed(init)
    model = CASES[case]() if isinstance(case, str) else case()
    model.build((None, *data(str(case))[0].shape))
    compile_options = {"run_eagerly": True, **compile_options}
    model.compile(compile_options.pop("optimizer", keras.optimizers.Adam(0.05)), **compile_options)
    return model


def fit(model, x=X, **kwargs):
    """One step an epoch, in the order of the data."""
    order = {} if isinstance(x, tf.data.Dataset) else {"shuffle": False}
    return model.fit(x, **{"batch_size": 16, "verbose": 0, **order, **kwargs}).history


def state(model):
    """All weights, except for the number of batches of the last evaluation."""
    return [w.numpy() for w in model.weights if w.name != "test_step"]


def assert_same(a, b, **tolerance):
    assert len(a) == len(b)
    for value, other in zip(a, b, strict=True):
        np.testing.assert_allclose(value, other, **{"rtol": 0, "atol": 0, **tolerance})


def is_annealed(model):
    return isinstance(model, AnnealedVAE)


def has_acceptance(model):
    return is_annealed(model) and model.has_acceptance


# Training, saving and loading of every case.


class Halfway(keras.callbacks.Callback):
    """After the first epoch, saves the model and notes its bound."""

    def __init__(self, path, x):
        super().__init__()
        self.path, self.x = path, x

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.model.save(self.path)
            self.bound = self.model.bound(self.x, seed=3).numpy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a case for two epochs, once; returns the model, its history, and `Halfway`."""
    folder = tmp_path_factory.mktemp("halfway")

    @functools.cache
    def train(case):
        model, x = make(case), data(case)
        halfway = Halfway(folder / f"{case}.keras", x)
        return model, fit(model, x, epochs=2, validation_data=(x,), callbacks=[halfway]), halfway

    return train


@each_case
def test_training_learns_and_reports(case, trained):
    model, history, _ = trained(case)
    names = {"loss", "bound"}
    if is_annealed(model):
        names |= {"step_size"}
    if has_acceptance(model):
        names |= {"acceptance", *(f"acceptance_{k + 1}" for k in range(K))}
    if "drift" in case:
        names |= {"drift_error"}
    assert set(history) == names | {f"val_{name}" for name in names} | {"grad_norm"}
    assert all(len(values) == 2 and np.all(np.isfinite(values)) for values in history.values())
    # Held-out bounds of both epochs are made with the same draws.
    assert history["val_bound"][1] > history["val_bound"][0]
    assert history["bound"][1] > history["bound"][0]
    assert history["loss"][1] < history["loss"][0]
    if has_acceptance(model):
        assert 0 <= history["acceptance"][0] <= 1
        each = [history[f"acceptance_{k + 1}"] for k in range(K)]
        np.testing.assert_allclose(np.mean(each, axis=0), history["acceptance"], rtol=1e-5)


@few_cases
def test_config_round_trip(case, trained):
    model = trained(case)[0]
    config = json.dumps(model.get_config())
    copy = type(model).from_config(json.loads(config))
    assert json.dumps(copy.get_config()) == config
    copy.build((None, *model.event_shape))
    copy.set_weights(model.get_weights())
    x = data(case)
    np.testing.assert_array_equal(copy.bound(x, seed=1), model.bound(x, seed=1))


def resume(folder):
    """Loads each file, in a fresh process, and trains it for another epoch."""
    results = {}
    for path in pathlib.Path(folder).glob("*.keras"):
        model, x = keras.models.load_model(path), data(path.stem)
        results[f"{path.stem}/bound"] = model.bound(x, seed=3).numpy()
        fit(model, x, initial_epoch=1, epochs=2)
        results |= {f"{path.stem}/{i}": value for i, value in enumerate(state(model))}
    np.savez(pathlib.Path(folder) / "resumed.npz", **results)


@pytest.fixture(scope="module")
def resumed(trained, request):
    """The results of `resume` for all cases that are run."""
    cases = CASES if request.config.getoption("--runslow") else RESUMED
    saved = [trained(case)[2].path for case in cases]
    folder = saved[0].parent
    paths = [str(pathlib.Path(__file__).parents[i]) for i in (0, 1, 2)]
    subprocess.run(
        [sys.executable, "-c", f"import test_models; test_models.resume({str(folder)!r})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
    )
    return np.load(folder / "resumed.npz")


RESUMED = (
    "VAE-gaussian-learned",
    "FlowVAE-realnvp",
    "LMCVAE-acceptance",
    "LMCVAE-learned-reverse",
    "UHAVAE-everything-learned",
    "DAISVAE",
    "LDVIVAE",
    "HVAE",
    "AMCVAE",
    "AMCVAE-subclassed",
)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in RESUMED)) for c in CASES]
)
def test_saved_model_continues_in_a_fresh_process(case, trained, resumed):
    """With the optimizer, counters, step sizes and schedules, as without an interruption."""
    model, _, halfway = trained(case)
    np.testing.assert_allclose(resumed[f"{case}/bound"], halfway.bound, rtol=1e-6)
    expected = state(model)
    assert_same([resumed[f"{case}/{i}"] for i in range(len(expected))], expected, atol=1e-6)


@few_cases
def test_only_training_changes_the_model(case, trained):
    model, x = trained(case)[0], data(case)
    before = state(model)
    results = model.evaluate(x, verbose=0, return_dict=True)
    # The same numbers again, each once.
    names = [name for name in model.metrics_names if name != "grad_norm"]
    assert sorted(names) == sorted(results)
    assert model.evaluate(x, verbose=0) == [results[name] for name in names]
    predicted = model.predict(x, verbose=0)
    np.testing.assert_allclose(predicted, model.reconstruct(x), rtol=1e-5, atol=1e-6)
    model.log_weights(x)
    model.posterior_sample(x)
    model.sample(2)
    assert_same(state(model), before)


@few_cases
def test_public_methods(case, trained):
    model, x = trained(case)[0], data(case)[:4]
    loc, scale = model.encode(x)
    assert loc.shape == scale.shape == (4, LATENT_DIM)
    assert np.all(scale > 0)
    assert model.decode(tf.zeros([3, 5, LATENT_DIM])).shape == (3, 5, *x.shape[1:])
    center = model.flow.forward(loc)[0] if isinstance(model, FlowVAE) else loc
    np.testing.assert_allclose(model.reconstruct(x), model.decode(center), rtol=1e-6)
    assert model.sample(3).shape == (3, *x.shape[1:])
    assert model.posterior_sample(x, 6).shape == (6, 4, LATENT_DIM)
    log_weights = model.log_weights(x)
    assert log_weights.shape == (model.num_samples, 4)
    assert log_weights.dtype == tf.float32
    assert model.log_weights(x, num_samples=6).shape == (6, 4)
    assert model.bound(x).shape == (4,)


@few_cases
def test_seeds(case, trained):
    model, x = trained(case)[0], data(case)[:3]
    for method in (model.log_weights, model.posterior_sample):
        np.testing.assert_array_equal(method(x, seed=5), method(x, seed=tf.constant([0, 5])))
        assert not np.allclose(method(x, seed=5), method(x, seed=6))


ROWS = np.arange(6, dtype=np.int32).reshape(3, 2)


@pytest.mark.parametrize(
    "case", ["VAE", "IWAE", "LMCVAE-cloned", "LMCVAE-vectors", "LDVIVAE", "AMCVAE"]
)
def test_a_row_depends_on_its_own_seed_only(case, trained):
    model, x = trained(case)[0], data(case)[:3]
    for method in (model.log_weights, model.posterior_sample):
        together = method(x, seed=random.per_row(ROWS))
        alone = method(x[1:2], seed=random.per_row(ROWS[1:2]))
        np.testing.assert_allclose(alone[:, 0], together[:, 1], rtol=1e-4, atol=1e-5)
        assert not np.allclose(method(x[1:2], seed=random.per_row(ROWS[:1])), alone)
    together = model.sample(3, seed=random.per_row(ROWS))
    alone = model.sample(1, seed=random.per_row(ROWS[1:2]))
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["IWAE", "LMCVAE", "AMCVAE"])
def test_without_a_seed_every_call_draws_anew_and_reproducibly(case):
    first, second, other = make(case), make(case), make(case)
    other.seed = 1
    values = [[m.bound(X), m.bound(X), m.sample(3), m.sample(3)] for m in (first, second, other)]
    assert_same(values[0], values[1])
    assert not np.allclose(values[0][0], values[0][1])
    assert not np.allclose(values[0][2], values[0][3])
    assert not np.allclose(values[0][0], values[2][0])


# Seeds of training; eager, graph and XLA execution.


@pytest.mark.parametrize(
    "case", ["VAE", "LMCVAE-acceptance", pytest.param("AMCVAE", marks=pytest.mark.slow)]
)
def test_same_seed_same_curve(case, trained):
    _, history, _ = trained(case)
    x = data(case)
    assert fit(make(case), x, epochs=2, validation_data=(x,)) == history
    other = make(case)
    other.seed = 1
    assert fit(other, x)["bound"][0] != history["bound"][0]


def test_each_step_draws_anew():
    model = make(optimizer=keras.optimizers.SGD(0.0))
    bounds = [model.train_on_batch(X, return_dict=True)["bound"] for _ in range(3)]
    bounds += [model.test_on_batch(X, return_dict=True)["bound"] for _ in range(2)]
    assert len(set(bounds)) == 5


MODES = {
    "graph": {"run_eagerly": False},
    "xla": {"run_eagerly": False, "jit_compile": True},
    "steps": {"run_eagerly": False, "steps_per_execution": 2},
}


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ("IWAE-dreg", "graph"),
        ("VAE", "xla"),
        *[
            pytest.param(case, mode, marks=pytest.mark.slow)
            for case, mode in (
                ("LMCVAE-variance", "graph"),
                ("LMCVAE-dreg", "xla"),
                ("UHAVAE-everything-learned", "xla"),
                ("DAISVAE", "xla"),
                ("LDVIVAE", "xla"),
                ("CMCDVAE", "xla"),
                ("HVAE", "xla"),
                ("LMCVAE-acceptance", "xla"),
                ("AMCVAE-annealed", "xla"),
                ("AMCVAE-coupled", "xla"),
            )
        ],
        ("VAE", "steps"),
    ],
)
def test_graph_and_xla_train_as_eager_does(case, mode):
    models = [make(case), make(case, **MODES[mode])]
    histories = [fit(model, batch_size=8) for model in models]
    for name in ("loss", "bound", "grad_norm"):
        np.testing.assert_allclose(histories[1][name], histories[0][name], rtol=1e-5)
    assert_same(state(models[1]), state(models[0]), atol=1e-4)


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_a_training_step_is_traced_once(method, monkeypatch):
    """Tracing dominates the first step, and a step that makes variables is traced twice."""
    traced = []
    step = VAE.train_step
    monkeypatch.setattr(VAE, "train_step", lambda self, x: traced.append(x) or step(self, x))
    model = make("VAE", run_eagerly=False, jit_compile=False)
    for _ in range(2):
        getattr(model, method)(X[:16])
    assert len(traced) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "eager", "xla"])
def test_recomputed_activations_train_the_same(mode):
    histories, states = [], []
    for recompute in (False, True):
        options = {"num_transitions": 3, "num_samples": 2, "recompute": recompute}
        keras.utils.set_random_seed(0)
        model = AMCVAE(*dense(), likelihood=Gaussian(0.7, learned=True), step_size=0.1, **options)
        options = {"run_eagerly": True} if mode == "eager" else MODES[mode]
        model.compile(keras.optimizers.SGD(1e-3), **options)
        histories.append(fit(model, batch_size=8))
        states.append(state(model))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(histories[1][name], histories[0][name], rtol=1e-5)
    assert_same(*states, atol=1e-6)


@memory.on_linux
@pytest.mark.slow
def test_recomputed_memory_hardly_grows_with_the_number_of_transitions():
    code = """
import tensorflow as tf, tf_mcvae

model = tf_mcvae.LMCVAE(
    tf_mcvae.Encoder(2, architecture="dense", hidden_units=(8,)),
    tf_mcvae.Decoder((8, 8, 1), architecture="dense", hidden_units=(512,)),
    num_transitions=int(sys.argv[1]),
    recompute=sys.argv[2] == "True",
)
model.compile("adam")
model.train_on_batch(tf.zeros([4000, 8, 8, 1]))
print(peak())
"""

    def growth(recompute):
        # With fewer transitions, other memory of TensorFlow still grows.
        few, many = (float(*memory.printed(code, k, recompute)) for k in (25, 45))
        return many - few

    assert growth(True) < 0.1 * growth(False)


@pytest.mark.parametrize("model_class", [LMCVAE, AMCVAE])
@pytest.mark.slow
def test_large_batches_of_known_size_train_for_more_than_one_step(model_class):
    """TensorFlow rewrites the gradient of a loop that holds more than some 200 MB, wrongly."""
    keras.utils.set_random_seed(0)
    model = model_class(
        tf_mcvae.Encoder(2, architecture="dense", hidden_units=(8,)),
        tf_mcvae.Decoder((8, 8, 1), architecture="dense", hidden_units=(256,)),
        num_transitions=1,
        num_samples=4,
    )
    model.compile("adam")
    losses = [model.train_on_batch(tf.zeros([4000, 8, 8, 1])) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ("case", "jit_compile"),
    [
        *[(case, False) for case in ("LMCVAE-vectors", "DAISVAE", "CMCDVAE", "AMCVAE-barker")],
        *[(case, True) for case in ("IWAE", "LMCVAE-vectors", "LDVIVAE")],
    ],
)
def test_bound_is_the_same_in_eager_graph_and_xla(case, jit_compile, trained):
    model, x = trained(case)[0], data(case)
    bound = tf.function(model.bound, jit_compile=jit_compile)
    np.testing.assert_allclose(bound(x, seed=2), model.bound(x, seed=2), rtol=1e-5)


# Forms of data for `fit` and the other methods of Keras.

LABELS = np.zeros(16)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], LABELS[:8]


def batches(*arrays):
    arrays = arrays[0] if len(arrays) == 1 else arrays
    return tf.data.Dataset.from_tensor_slices(arrays).batch(8)


FORMS = {
    "arrays": lambda: {"x": X, "y": LABELS},
    "tensor": lambda: {"x": tf.constant(X), "validation_data": X},
    "float64": lambda: {"x": X.astype(np.float64), "validation_data": (X, LABELS)},
    "dataset": lambda: {"x": batches(X), "validation_data": batches(X)},
    "labelled dataset": lambda: {"x": batches(X, LABELS), "validation_data": batches(X, LABELS)},
    "weighted dataset": lambda: {"x": batches(X, LABELS, np.ones(16))},
    "weights": lambda: {"x": X, "sample_weight": np.ones(16)},
    "column of weights": lambda: {"x": X, "sample_weight": np.ones([16, 1])},
    "PyDataset": lambda: {"x": Batches(), "validation_data": Batches()},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data_train_equally(form):
    """The model is not built before: the data's shape builds it."""
    keras.utils.set_random_seed(0)
    model = CASES["VAE"]()
    model.compile(keras.optimizers.Adam(0.05), run_eagerly=True)
    arguments = FORMS[form]()
    history = fit(model, batch_size=8, **arguments)
    assert ("val_bound" in history) == ("validation_data" in arguments)
    weights, losses = trained_on_batches()
    assert_same(model.trainable_weights, weights, atol=1e-6)
    np.testing.assert_allclose(history["loss"], [np.mean(losses)], rtol=1e-5)
    assert model.predict(arguments["x"], verbose=0).shape == X.shape


@functools.cache
def trained_on_batches():
    model = make()
    losses = [model.train_on_batch(X[i : i + 8])[0] for i in (0, 8)]
    return model.trainable_weights, losses


def test_examples_of_weight_zero_teach_nothing():
    models = [make(), make(), make()]
    weights = [np.repeat([1.0, 0.0], [5, 3])] * 2
    weights.append(weights[0][:, np.newaxis])  # As a column.
    for model, rest, weight in zip(models, (X[5:8], X[8:11], X[5:8]), weights, strict=True):
        model.train_on_batch(np.concatenate([X[:5], rest]), sample_weight=weight)
    assert_same(models[0].trainable_weights, models[1].trainable_weights)
    assert_same(models[0].trainable_weights, models[2].trainable_weights)


def test_weighted_losses_are_divided_by_the_number_of_examples():
    """As in Keras. The metrics are weighted means."""
    one, half = make(optimizer="sgd"), make(optimizer="sgd")
    expected = one.train_on_batch(X, return_dict=True)
    result = half.train_on_batch(X, sample_weight=np.full(16, 0.5), return_dict=True)
    np.testing.assert_allclose(result["grad_norm"], 0.5 * expected["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(result["bound"], expected["bound"], rtol=1e-5)


def test_callbacks(tmp_path):
    model = make("LMCVAE")
    callbacks = [
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.CSVLogger(tmp_path / "history.csv"),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", monitor="val_bound", mode="max", save_best_only=True
        ),
        # No gain is large enough, so training stops after the second epoch.
        keras.callbacks.EarlyStopping(
            monitor="val_bound", mode="max", min_delta=1e9, patience=1, restore_best_weights=True
        ),
    ]
    history = fit(model, epochs=9, validation_data=(X,), callbacks=callbacks)
    assert len(history["loss"]) == 2
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_bound"]) for row in rows] == history["val_bound"]
    assert {"acceptance_1", "step_size", "grad_norm"} <= set(rows[0])
    best = keras.models.load_model(tmp_path / "best.keras")
    assert int(best.step) == 2
    assert int(model.step) == 1  # The weights of the first epoch are back.


def test_training_that_diverges_is_stopped():
    model = make(optimizer=keras.optimizers.SGD(1e30))
    history = fit(model, epochs=9, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert len(history["loss"]) < 3


def test_gradient_clipping():
    model = make("LMCVAE", optimizer=keras.optimizers.SGD(1.0, global_clipnorm=0.01))
    before = [weight.numpy() for weight in model.trainable_weights]
    grad_norm = model.train_on_batch(X, return_dict=True)["grad_norm"]
    moved = [w - b for w, b in zip(model.trainable_weights, before, strict=True)]
    np.testing.assert_allclose(np.sqrt(sum(np.sum(m**2) for m in moved)), 0.01, rtol=1e-3)
    assert grad_norm > 0.1  # The gradient's own norm.


GRAPHS = {"eager": {}, "graph": {"run_eagerly": False}}
GRAPHS["xla"] = {**GRAPHS["graph"], "jit_compile": True}


@pytest.mark.parametrize("graph", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_large_gradients_are_clipped_and_skipped(graph, tmp_path):
    """Norms are measured first, so that each threshold lies between the norms of two batches."""
    batches = tf.data.Dataset.from_tensor_slices(X).batch(4)
    # With a learning rate of 0, weights and norms do not change.
    frozen = make(optimizer=keras.optimizers.SGD(0.0))
    norms = [frozen.train_on_batch(x, return_dict=True)["grad_norm"] for x in batches]
    low, high = float(np.mean(np.sort(norms)[:2])), float(np.mean(np.sort(norms)[-2:]))
    optimizer = keras.optimizers.SGD(0.0, momentum=0.9, global_clipnorm=low)
    model = make(optimizer=optimizer, skip_gradient_norm=high, **GRAPHS[graph])
    history = fit(model, batches)
    assert (history["clipped"], history["skipped"]) == ([3.0], [1.0])
    np.testing.assert_allclose(history["grad_norm"], np.mean(norms), rtol=1e-5)
    assert int(model.optimizer.iterations) == 3
    assert int(model.step) == 4
    model.save(tmp_path / "skipping.keras")
    loaded = tf_mcvae.load_model(tmp_path / "skipping.keras")
    assert loaded.skip_gradient_norm == high
    assert {"clipped", "skipped"} <= fit(loaded, batches).keys()


ADAPTED_RULES = ("acceptance", "published_acceptance", "variance")


def adapting(rule, model_class=LMCVAE):
    """A model of which every kind of weight changes in training, moving averages included."""
    encoder = keras.Sequential([keras.layers.BatchNormalization(), dense()[0]])
    steps = StepSize(0.05, rule)
    return model_class(encoder, dense()[1], num_transitions=K, num_samples=1, step_size=steps)


@pytest.mark.parametrize("rule", ADAPTED_RULES)
def test_a_skipped_update_changes_nothing(rule):
    graph = GRAPHS["graph" if rule == "acceptance" else "eager"]
    model = make(lambda: adapting(rule), skip_gradient_norm=1e-9, jit_compile=False, **graph)
    model.optimizer.build(model.trainable_variables)
    kept = [w for w in [*model.weights, *model.optimizer.variables] if w.name != "step"]
    before = [weight.numpy() for weight in kept]
    history = fit(model, epochs=2)
    assert history["skipped"] == [1.0, 1.0]
    assert "clipped" not in history
    assert_same(kept, before)
    if not model.run_eagerly:
        return
    model.skip_gradient_norm = 1e9  # These weights do change otherwise.
    fit(model)
    assert all(np.any(w.numpy() != b) for w, b in zip(kept, before, strict=True) if w.trainable)
    assert np.all(model.step_size.values() != np.float32(0.05))


@pytest.mark.filterwarnings("ignore:Training diverges:RuntimeWarning")
def test_gradients_that_are_no_numbers_are_skipped():
    model = make(skip_gradient_norm=1e9)
    weights = [weight.numpy() for weight in model.trainable_weights]
    model.encoder.trainable_weights[0].assign(np.full_like(weights[0], np.nan))
    fit(model)
    assert_same(model.trainable_weights[1:], weights[1:])


@pytest.mark.filterwarnings("ignore:Training diverges:RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"skip_gradient_norm": 1e9}, {"global_clipnorm": 1.0}])
@pytest.mark.parametrize("rule", ADAPTED_RULES)
def test_nothing_is_adapted_to_gradients_that_are_no_numbers(rule, options):
    optimizer = keras.optimizers.SGD(0.1, global_clipnorm=options.get("global_clipnorm"))
    skip = options.get("skip_gradient_norm")
    model = make(lambda: adapting(rule), optimizer=optimizer, skip_gradient_norm=skip)
    adapted = [w for w in model.non_trainable_weights if w.name != "step"]
    before = [weight.numpy() for weight in adapted]
    spoiled = model.encoder.trainable_weights[-1]
    spoiled.assign(np.full(spoiled.shape, np.nan))
    fit(model)
    assert_same(adapted, before)


@pytest.mark.parametrize("model_class", [LMCVAE, AMCVAE])
def test_one_state_has_no_spread_to_adapt_to(model_class):
    steps = StepSize(0.05, "variance")
    model = make(lambda: model_class(*dense(), num_transitions=K, num_samples=1, step_size=steps))
    before = [weight.numpy() for weight in steps.weights]
    fit(model, X[:1])
    assert_same(steps.weights, before)
    fit(model, X[:2])
    assert all(np.any(w.numpy() != b) for w, b in zip(steps.weights, before, strict=True))
    assert all(np.all(np.isfinite(weight)) for weight in state(model))


@pytest.mark.parametrize("model_class", [VAE, LMCVAE, pytest.param(AMCVAE, marks=pytest.mark.slow)])
def test_mixed_precision_networks(model_class):
    """Networks compute in bfloat16; log weights are float32, and near those of full precision."""
    model = make(lambda: model_class(*dense(dtype="mixed_bfloat16")))
    full = make(lambda: model_class(*dense()))
    assert model.encoder(X).dtype == tf.bfloat16
    log_weights = model.log_weights(X, seed=1)
    assert log_weights.dtype == tf.float32
    np.testing.assert_allclose(log_weights, full.log_weights(X, seed=1), rtol=0.02)
    history = fit(model, epochs=3)
    assert np.all(np.isfinite(list(history.values())))
    assert history["bound"][2] > history["bound"][0]


def test_mixed_float16_scales_the_loss_but_not_what_is_reported():
    options = {"dtype": "mixed_float16"}
    model = make(lambda: VAE(*dense(**options), **options))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    result = model.train_on_batch(X, return_dict=True)
    expected = make().train_on_batch(X, return_dict=True)
    assert result["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.05)
    assert result["bound"] == pytest.approx(expected["bound"], rel=0.01)


# Step sizes, annealing of the coefficient, the cloned decoder.


def test_published_acceptance_rule_moves_each_step_towards_its_target():
    steps = StepSize([0.01, 0.3], "published_acceptance", 0.95)
    model = make(lambda: LMCVAE(*dense(), num_transitions=K, step_size=steps))
    before = model.step_size.values().numpy()
    result = model.train_on_batch(X, return_dict=True)
    reached = np.array([result["acceptance_1"], result["acceptance_2"]]) >= 0.95
    assert list(reached) == [True, False]  # Both directions occur.
    expected = before * np.where(reached, 1.002, 0.998)
    np.testing.assert_allclose(model.step_size.values(), expected, rtol=1e-6)


def test_learned_steps_are_trained():
    model = make("LMCVAE-learned")
    assert model.step_size.trainable_weights
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model.estimate(Batch(tf.constant(X)), random.as_seed(1), True).loss)
    gradient = tape.gradient(loss, model.step_size.log_step_size.value)
    assert np.all(np.abs(gradient) > 0)
    before = model.step_size.values().numpy()
    model.train_on_batch(X)
    assert np.all(model.step_size.values() != before)


def test_variance_rule_is_per_dimension():
    model = make("LMCVAE-variance")
    model.train_on_batch(X)
    steps = model.step_size.values().numpy()
    assert steps.shape == (K, LATENT_DIM)
    # 0.9 times the first value, plus 0.1 * 0.1 / (score_std + 1).
    assert np.all((steps > 0.9 * 0.05) & (steps < 0.9 * 0.05 + 0.01))
    assert len(np.unique(steps)) == K * LATENT_DIM


@pytest.mark.parametrize("case", ["LMCVAE", "LMCVAE-per-dimension"])
def test_fixed_steps_stay(case, trained):
    model = trained(case)[0]
    np.testing.assert_array_equal(model.step_size.values(), make(case).step_size.values())
    if case == "LMCVAE-per-dimension":
        np.testing.assert_allclose(model.step_size.values(), [[0.05, 0.1]] * K)


def test_skip_threshold_undoes_proposals(trained):
    model = trained("LMCVAE-skip")[0]
    other = make(lambda: LMCVAE(*dense(), num_transitions=K, step_size=0.5))
    other.set_weights(model.get_weights())
    stayed = [
        np.mean(
            m.posterior_sample(X, 4, 1)
            == m.run_transitions(Batch(X), random.as_seed(1), 4).initial_state
        )
        for m in (model, other)
    ]
    assert stayed[0] > 0.02
    assert stayed[1] == 0


def coefficients(model, **kwargs):
    """The score-function term's coefficient in each epoch of `fit`."""
    values = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: values.append(float(model._coefficient()))
    )
    fit(model, X[:2], callbacks=note, **kwargs)
    return values


def test_alpha_annealing():
    model = make("AMCVAE-annealed")
    np.testing.assert_allclose(coefficients(model, epochs=2), [0.0, 0.1], rtol=1e-6)
    later = coefficients(model, initial_epoch=8, epochs=12)
    np.testing.assert_allclose(later, [0.8, 0.9, 1.0, 1.0], rtol=1e-6)
    assert coefficients(make("AMCVAE"), epochs=1) == [1.0]


@pytest.mark.parametrize("case", ["LMCVAE-cloned", "AMCVAE-subclassed"])
def test_cloned_decoder(case, trained):
    model = make(case)
    decoder, clone = model.decoder, model.transition_decoder
    assert_same(decoder.weights, clone.weights)
    assert not {id(weight) for weight in decoder.weights} & {id(weight) for weight in clone.weights}
    counts = [len(network.trainable_weights) for network in (model.encoder, decoder, clone)]
    assert len(model.trainable_weights) == sum(counts)
    assert counts[1] == counts[2]
    # Both are trained, separately.
    after = trained(case)[0]
    for network in (after.decoder, after.transition_decoder):
        pairs = zip(network.trainable_weights, decoder.weights, strict=True)
        assert not any(np.allclose(a, b, atol=1e-3) for a, b in pairs)
    assert not np.allclose(after.decoder.weights[-1], after.transition_decoder.weights[-1])


def test_cloned_decoder_is_for_transitions_only():
    model = make("LMCVAE-cloned")

    def outputs():
        return model.sample(3, seed=1), model.reconstruct(X), model.bound(X, seed=1)

    before = outputs()
    model.transition_decoder.set_weights([w + 1.0 for w in model.decoder.get_weights()])
    model.build((None, *SHAPE))  # It is built: its weights stay.
    after = outputs()
    assert_same(after[:2], before[:2])
    assert not np.allclose(after[2], before[2])


def test_without_clone_there_is_one_decoder():
    model = make("LMCVAE")
    assert model.transition_decoder is model.decoder
    networks = (model.encoder, model.decoder)
    assert len(model.trainable_weights) == sum(len(n.trainable_weights) for n in networks)


@pytest.mark.parametrize("case", ["LMCVAE", "AMCVAE"])
def test_posterior_samples_are_moved_by_the_transitions(case, trained):
    model = trained(case)[0]
    seed = random.as_seed(1)
    run = model.run_transitions(Batch(tf.constant(X)), seed, 4)
    np.testing.assert_allclose(model.posterior_sample(X, 4, seed), run.state)
    moved = np.any(run.state != run.initial_state, axis=-1)
    assert np.mean(moved) > 0.8
    # The draws have a higher joint density on average.
    log_joint = [np.mean(model.log_joint(X, z)) for z in (run.initial_state, run.state)]
    assert log_joint[1] > log_joint[0]


# Invalid input: each gives a message that ends with what was received.

NAN = X.copy()
NAN[3, 0, 0, 0] = np.nan


class NoConfig(keras.Model):
    def __init__(self, layers):
        super().__init__()
        self.chain = layers()

    def call(self, z):
        return self.chain(z)


def build(*networks, model_class=VAE, **kwargs):
    model_class(*networks, **kwargs).build((None, *SHAPE))


def annealed(**kwargs):
    return LMCVAE(*dense(), **kwargs)


def bad_encoder(*layers):
    return keras.Sequential(layers), dense()[1]


def unknown_shape():
    spec = tf.TensorSpec([None, None, None, 1], tf.float32)
    return tf.data.Dataset.from_generator(lambda: iter([X]), output_signature=spec)


BAD_DATA = {
    "wrong shape": (X[:, 1:], ValueError, "built for examples of shape"),
    "NaN": (NAN, ValueError, "finite"),
    "integers": ((255 * X).astype(np.uint8), TypeError, "scale integer pixels"),
    "outside [0, 1]": (2.0 * X, ValueError, r"values in \[0, 1\]"),
    "empty": (X[:0], ValueError, "at least one example"),
    "one image": (X[0], ValueError, "built for examples of shape"),
    "dataset: empty": (batches(X).take(0), ValueError, "at least one batch"),
    "dataset: wrong shape": (batches(X[:, 1:]), ValueError, "built for examples of shape"),
    "dataset: integers": (batches((255 * X).astype(np.uint8)), TypeError, "scale integer"),
    "dataset: NaN": (batches(NAN), ValueError, r"values in \[0, 1\].* from nan to nan"),
    "dataset: outside [0, 1]": (batches(2.0 * X), ValueError, r"from 0 to 2"),
    "dataset: dictionaries": (batches({"x": X}), TypeError, "batches of x"),
}


def assert_raises(function, error, match):
    with pytest.raises(error, match=match) as info:
        function()
    message = str(info.value)
    assert "Received: " in message
    assert "\n" not in message


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused(name):
    bad, *expected = BAD_DATA[name]
    model = make()
    quiet = {"verbose": 0}
    methods = [
        functools.partial(model.fit, **quiet),
        lambda x: model.fit(X, validation_data=x, **quiet),
        functools.partial(model.evaluate, **quiet),
        functools.partial(model.predict, **quiet),
    ]
    if not isinstance(bad, tf.data.Dataset):
        methods += [model.train_on_batch, model.test_on_batch, model.predict_on_batch]
        methods += [model.log_weights, model.encode, model.reconstruct, model.posterior_sample]
    for method in methods:
        assert_raises(functools.partial(method, bad), *expected)


def test_bad_batch_is_refused_under_xla():
    """XLA would drop an assertion in the step; the batch is refused before it is trained on."""
    model = make("VAE", run_eagerly=False, jit_compile=True)
    with pytest.raises(ValueError, match="Received: a batch with values from nan"):
        model.fit(batches(np.concatenate([X[8:], NAN[:8]])), verbose=0)
    assert int(model.step) == 1
    assert np.all([np.all(np.isfinite(weight)) for weight in model.weights])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_data_that_turns_out_empty_is_refused(method):
    nothing = batches(X).filter(lambda x: False)
    assert_raises(lambda: getattr(make(), method)(nothing, verbose=0), ValueError, "one batch")


FLAT = keras.layers.Flatten

BAD_CALLS = {
    "K=0": (lambda: annealed(num_transitions=0), ValueError, "num_transitions"),
    "K=2.5": (lambda: annealed(num_transitions=2.5), ValueError, "num_transitions"),
    "negative step": (lambda: annealed(step_size=-0.1), ValueError, "not negative"),
    "NaN step": (lambda: annealed(step_size=np.nan), ValueError, "finite"),
    "learned zero": (lambda: StepSize(0.0, "learned"), ValueError, "above 0"),
    "rule": (lambda: StepSize(0.1, "magic"), ValueError, "`rule`"),
    "target": (lambda: StepSize(0.1, target_acceptance=90), ValueError, "between 0 and 1"),
    "steps of other K": (
        lambda: build(*dense(), model_class=LMCVAE, step_size=[0.1, 0.2]),
        ValueError,
        "fit 5 transitions",
    ),
    "schedule": (lambda: annealed(schedule="cosine"), ValueError, "`schedule`"),
    "skip": (lambda: annealed(skip_threshold=1.5), ValueError, "probability"),
    "unknown argument": (
        lambda: LMCVAE(*dense(), num_transition=3),
        TypeError,
        "'num_transition'.*mean 'num_transitions'.*Received: num_transition=3",
    ),
    "acceptance": (lambda: AMCVAE(*dense(), acceptance="magic"), ValueError, "`acceptance`"),
    "gradient": (lambda: IWAE(*dense(), gradient="magic"), ValueError, "`gradient`"),
    "likelihood": (lambda: VAE(*dense(), likelihood="laplace"), ValueError, "likelihood"),
    "no likelihood": (lambda: VAE(*dense(), likelihood=None), TypeError, "likelihood"),
    "S=0": (lambda: VAE(*dense(), num_samples=0), ValueError, "num_samples"),
    "seed": (lambda: VAE(*dense(), seed=0.5), TypeError, "`seed`"),
    "no encoder": (lambda: VAE(None, dense()[1]), TypeError, "`encoder` must be a Keras model"),
    "odd encoder": (
        lambda: build(*bad_encoder(FLAT(), keras.layers.Dense(3))),
        ValueError,
        r"2 \* latent_dim.*\(None, 3\)",
    ),
    "3-D encoder": (
        lambda: build(*bad_encoder(keras.layers.Reshape([4, 4]))),
        ValueError,
        r"2 \* latent_dim.*\(None, 4, 4\)",
    ),
    "decoder": (
        lambda: build(*bad_encoder(FLAT(), keras.layers.Dense(4))[:1], sequential((5,))[1]),
        ValueError,
        r"parameters, \[B, 4, 4, 1\].*\(None, 5\)",
    ),
    "clone without config": (
        lambda: LMCVAE(dense()[0], NoConfig(lambda: dense()[1]), cloned_decoder=True),
        ValueError,
        "`get_config`",
    ),
    "sample unbuilt": (lambda: VAE(*dense()).sample(1), ValueError, "no shapes yet"),
    "shape unknown": (lambda: VAE(*dense()).fit(unknown_shape()), ValueError, "must know"),
    "no data": (lambda: make().fit(), TypeError, "must be an array"),
    "pairs": (lambda: make().fit((X, LABELS)), TypeError, "must be an array"),
    "skipped gradients": (lambda: make(skip_gradient_norm=0.0), ValueError, "above 0"),
    "loss": (lambda: make(loss="mse"), ValueError, "loss and metrics of its own"),
    "metrics": (lambda: make(metrics=["mse"]), ValueError, "loss and metrics of its own"),
    "sample 0": (lambda: make().sample(0), ValueError, "num_samples"),
    "0 weights": (lambda: make().log_weights(X, num_samples=0), ValueError, "num_samples"),
    "0 posterior samples": (lambda: make().posterior_sample(X, 0), ValueError, "num_samples"),
    "float seed": (lambda: make().bound(X, seed=0.5), TypeError, "`seed`"),
    "too few seeds": (
        lambda: make().bound(X, seed=random.per_row(ROWS)),
        ValueError,
        "each of the 16 rows",
    ),
    "too many seeds": (
        lambda: make().sample(2, seed=random.per_row(ROWS)),
        ValueError,
        "each of the 2 rows",
    ),
    "no seed in a graph": (
        lambda: tf.function(make().bound, autograph=False)(X),
        ValueError,
        "`seed`",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name):
    assert_raises(*BAD_CALLS[name])


# Loading.


def test_load_model_reads_what_save_wrote(tmp_path):
    model = tf_mcvae.VAE(
        tf_mcvae.Encoder(2, architecture="dense"), tf_mcvae.Decoder((4,), architecture="dense")
    )
    model.build((None, 4))
    model.save(tmp_path / "x.keras")
    x = np.full([3, 4], 0.5, np.float32)
    loaded = tf_mcvae.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(loaded.bound(x, 1), model.bound(x, 1))


def test_load_model_refuses_other_files_in_a_sentence(tmp_path):
    other = keras.Sequential([keras.layers.Dense(2)])
    other.build((None, 3))
    other.save(tmp_path / "other.keras")
    whole = (tmp_path / "other.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.keras").write_bytes(b"")
    other.save_weights(tmp_path / "weights.weights.h5")
    sentences = {
        "missing.keras": "There is no such file",
        "cut.keras": "The file is damaged",
        "empty.keras": "The file is damaged",
        "weights.weights.h5": "The file is an HDF5 file, not a .keras file",
        "other.keras": "The file does not hold a tf_mcvae model",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ValueError, match=rf"{sentence}.*Received: .*{re.escape(name)}"):
            tf_mcvae.load_model(tmp_path / name)
