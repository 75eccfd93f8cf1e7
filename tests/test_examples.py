"""The code of the README, docs/models.md and docstrings runs as it is written."""

import doctest
import importlib
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest

import tf_mcvae
import tf_mcvae_commands
from tf_mcvae_commands.train import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = README + "".join(
    (ROOT / "docs" / page).read_text("utf-8") for page in ("models.md", "likelihoods.md")
)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
MODULES = [
    module.name
    for package in (tf_mcvae, tf_mcvae_commands)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.ispkg
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_pages(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "<page>", "exec"), {})
    if "estimate_log_likelihood" in block:
        assert "nats" in capsys.readouterr().out
        assert (tmp_path / "digits.keras").exists()


@pytest.mark.slow
def test_compare_runs(tmp_path, monkeypatch, capsys):
    """Compares two runs; a run compared with itself does not differ."""
    line = "--epochs 1 --limit_train_batches 2 --no-export --score-examples 10 --iwae-samples 2"
    line += f" --ais-temperatures 3 --output-dir {tmp_path}"
    for model in ("VAE", "IWAE"):
        assert main([*line.split(), "--model", model, "--name", model]) == 0
    for pair, zero in ((("VAE", "IWAE"), False), (("VAE", "VAE"), True)):
        folders = [str(tmp_path / name) for name in pair]
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *folders])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples/compare_runs.py"))
        printed = capsys.readouterr().out
        assert re.fullmatch(r"\w+ - \w+: -?[\d.]+ ± [\d.]+ nats per example\n", printed)
        assert ("0.000 ± 0.000" in printed) is zero


def run_example(name, capsys):
    capsys.readouterr()
    runpy.run_path(str(ROOT / "examples" / name))
    return capsys.readouterr().out


@pytest.mark.slow
def test_pipelines(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    printed = run_example("pipelines.py", capsys)
    assert "297 draws from the posterior of 8 latents" in printed
    assert "the same numbers is True" in printed
    assert float(printed.split()[-1]) < 1e-4


@pytest.mark.slow
def test_transfer_learning(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    printed = run_example("transfer_learning.py", capsys)
    frozen, tuned, _ = map(int, re.findall(r"(\d+)%", printed))
    # Guesses are right in 10 % of the cases.
    assert min(frozen, tuned) > 60
    assert printed.endswith("answers the same: True\n")


def test_readme_names_every_signature_that_is_exported():
    for name in ("encode", "posterior_sample", "decode", "reconstruct", "generate"):
        assert f"`{name}`" in README


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    classes = (tf_mcvae.VAE, tf_mcvae.LMCVAE, tf_mcvae.kernels.MetropolisAdjustedLangevin)
    assert all(any(test.examples for test in finder.find(found)) for found in classes)
