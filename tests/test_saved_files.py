"""Files of every release load, and give the same numbers as when they were written.

`scripts/make_saved_files.py` wrote them, one folder for each version. They never change.
"""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest

import tf_mcvae
from scripts.make_saved_files import SHAPE, answers, bound_after_a_step, examples

FOLDERS = sorted((pathlib.Path(__file__).parent / "saved_files").iterdir())
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.keras"))]
EXPECTED = {folder: np.load(folder / "expected.npz") for folder in FOLDERS}
# Files with layers of Keras. Keras 3.13 writes an option that earlier versions refuse.
OF_KERAS, REFUSED_BEFORE = ("encoder_features", "iwae_sequential"), (3, 13)


def numbers(version):
    return tuple(map(int, version.split(".")[:2]))


def is_refused(path):
    """Whether the installed Keras cannot read layers of Keras in the file."""
    with zipfile.ZipFile(path) as file:
        written_by = json.loads(file.read("metadata.json"))["keras_version"]
    installed = numbers(keras.__version__)
    return path.stem in OF_KERAS and installed < REFUSED_BEFORE <= numbers(written_by)


def close(actual, expected):
    """Equal but for the rounding of another machine, to the size of the array."""
    atol = 2e-5 * np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


# Further flows, and of an older Keras the files without layers of Keras.
SLOW = {
    path
    for path in FILES
    if path.stem in ("flow_iaf", "flow_bnaf")
    or (path.parent.name == "0.1.0-keras-3.8" and path.stem not in ("vae", *OF_KERAS))
}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path in SLOW)) for path in FILES],
    ids=[f"{path.parent.name}-{path.stem}" for path in FILES],
)
def test_file_gives_the_numbers_that_it_gave(path):
    if is_refused(path):
        with pytest.raises(TypeError, match="quantization_config"):
            keras.saving.load_model(path)
        return
    expected = EXPECTED[path.parent]
    if path.stem == "encoder_features":
        classifier = keras.saving.load_model(path)
        output = classifier.predict(examples(SHAPE), verbose=0)
        close(output, expected["encoder_features/output"])
        return
    model = tf_mcvae.load_model(path)
    x = examples(model.event_shape)
    for name, value in answers(model, x).items():
        close(value, expected[f"{path.stem}/{name}"])
    close(bound_after_a_step(model, x), expected[f"{path.stem}/next_bound"])


def test_each_kind_of_model_has_a_file():
    kinds = {tf_mcvae.VAE, tf_mcvae.IWAE, tf_mcvae.LMCVAE, tf_mcvae.AMCVAE, tf_mcvae.FlowVAE}
    for folder in FOLDERS:
        files = {path for path in folder.glob("*.keras") if path.stem != "encoder_features"}
        files -= set(filter(is_refused, files))
        assert {type(tf_mcvae.load_model(path)) for path in files} == kinds
