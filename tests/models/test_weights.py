"""Weights of examples: used however they are given, with labels or without, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae

SHAPE = (8,)
X = (np.random.default_rng(0).random([12, *SHAPE]) < 0.4).astype("float32")
LABELS = np.arange(12) % 3
WEIGHTS = np.linspace(0.0, 2.0, 12)


def make():
    keras.utils.set_random_seed(0)
    model = tf_mcvae.VAE(
        tf_mcvae.Encoder(2, architecture="dense", hidden_units=(4,)),
        tf_mcvae.Decoder(SHAPE, architecture="dense", hidden_units=(4,)),
    )
    model.build((None, *SHAPE))
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    return model


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(6)


class Batches(keras.utils.PyDataset):
    """Two batches with labels and weights."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(6 * index, 6 * index + 6)
        return X[part], None, WEIGHTS[part]


def generated():
    yield Batches()[0]
    yield Batches()[1]


FIT = {"shuffle": False, "verbose": 0, "batch_size": 6}
FORMS = {
    "labels": lambda m: m.fit(X, LABELS, sample_weight=WEIGHTS, **FIT),
    "no labels": lambda m: m.fit(X, sample_weight=WEIGHTS, **FIT),
    "list": lambda m: m.fit(X, sample_weight=list(WEIGHTS), **FIT),
    "column": lambda m: m.fit(tf.constant(X), sample_weight=WEIGHTS[:, np.newaxis], **FIT),
    "by position": lambda m: m.fit(X, None, 6, 1, 0, None, 0.0, None, False, None, WEIGHTS),
    "labelled data set": lambda m: m.fit(dataset(X, LABELS, WEIGHTS), verbose=0),
    "column in a data set": lambda m: m.fit(dataset(X, LABELS, WEIGHTS[:, None]), verbose=0),
    "data set": lambda m: m.fit(dataset(X, WEIGHTS).map(lambda x, w: (x, None, w)), verbose=0),
    "PyDataset": lambda m: m.fit(Batches(), shuffle=False, verbose=0),
    "generator": lambda m: m.fit(generated(), steps_per_epoch=2, verbose=0),
    "batches": lambda m: [
        m.train_on_batch(X[:6], sample_weight=WEIGHTS[:6]),
        m.train_on_batch(X[6:], None, WEIGHTS[6:]),
    ],
}


@pytest.fixture(scope="module")
def expected():
    """The weights of the model after two steps."""
    model = make()
    for batch in dataset(X, LABELS, WEIGHTS):
        model.train_step(batch)
    return model.get_weights()


@pytest.mark.parametrize("form", FORMS)
def test_weights_train_however_they_are_given(form, expected):
    model = make()
    FORMS[form](model)
    for weight, value in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-6)


def test_class_weights_train_with_labels_only():
    """They are weights of the examples that have these labels."""
    by_class, by_example = make(), make()
    by_class.fit(X, LABELS, class_weight={0: 0.5, 1: 0.0, 2: 2.0}, **FIT)
    by_example.fit(X, sample_weight=np.array([0.5, 0.0, 2.0])[LABELS], **FIT)
    for pair in zip(by_class.get_weights(), by_example.get_weights(), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)


def test_evaluations_use_weights():
    """The loss is the weighted sum divided by the number of examples, the bound a weighted mean."""
    model = make()
    model.optimizer.learning_rate = 0.0
    first = model.evaluate(X[6:], batch_size=6, verbose=0, return_dict=True)
    weight = np.zeros(12)
    weight[6:] = 0.5
    options = {**FIT, "batch_size": 6}
    results = [
        model.evaluate(X[6:], sample_weight=weight[6:], verbose=0, return_dict=True),
        model.evaluate(X[6:], None, 6, 0, weight[6:], return_dict=True),
        model.test_on_batch(X[6:], None, weight[6:], return_dict=True),
    ]
    for arguments in (
        {"x": X, "validation_data": (X[6:], None, weight[6:])},
        {"x": X, "sample_weight": weight, "validation_split": 0.5},
    ):
        history = model.fit(**arguments, **options).history
        results.append({name: history[f"val_{name}"][0] for name in ("loss", "bound")})
    for number, result in enumerate(results):
        np.testing.assert_allclose(result["loss"], -0.5 * result["bound"], rtol=1e-5)
        if number != 2:  # `test_on_batch` draws other numbers at each call.
            np.testing.assert_allclose(result["bound"], first["bound"], rtol=1e-5)


BAD = {
    "length": np.ones(5),
    "shape": np.ones([12, 8]),
    "negative": -WEIGHTS,
    "not finite": np.where(WEIGHTS > 1.9, np.nan, WEIGHTS),
    "text": np.array(["a"] * 12),
    "ragged": [[1.0], [1.0, 2.0]] * 6,
}
METHODS = {
    "fit": lambda m, w: m.fit(X, sample_weight=w, **FIT),
    "validation": lambda m, w: m.fit(X, validation_data=(X, None, w), **FIT),
    "evaluate": lambda m, w: m.evaluate(X, sample_weight=w, verbose=0),
    "train_on_batch": lambda m, w: m.train_on_batch(X, None, w),
    "test_on_batch": lambda m, w: m.test_on_batch(X, sample_weight=w),
}
REFUSED = {
    **{
        f"{method}, {kind}": lambda m, call=call, weight=weight: call(m, weight)
        for method, call in METHODS.items()
        for kind, weight in BAD.items()
    },
    "data set, shape": lambda m: m.fit(dataset(X, X, X), verbose=0),
    "data set, negative": lambda m: m.fit(dataset(X, X, -WEIGHTS), verbose=0),
    "data set, text": lambda m: m.fit(dataset(X, X, BAD["text"]), verbose=0),
    "apart from a data set": lambda m: m.fit(dataset(X), sample_weight=WEIGHTS, verbose=0),
    "classes without labels": lambda m: m.fit(X, class_weight={0: 1.0}, **FIT),
    "classes of images": lambda m: m.fit(X, X[..., None], class_weight={0: 1.0}, **FIT),
    "negative class": lambda m: m.fit(X, LABELS, class_weight={0: -1.0}, **FIT),
    "classes and examples": lambda m: m.fit(
        X, LABELS, class_weight={0: 1.0}, sample_weight=WEIGHTS
    ),
    "classes of a data set": lambda m: m.fit(dataset(X), class_weight={0: 1.0}, verbose=0),
    "classes of a batch": lambda m: m.train_on_batch(X, class_weight={0: 1.0}),
}


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_weights_are_refused_before_training(name, model):
    with pytest.raises(ValueError, match="Received: "):
        REFUSED[name](model)
    assert int(model.step) == 0
