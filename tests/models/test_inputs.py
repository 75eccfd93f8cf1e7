"""Data in every form that Keras takes: each batch is checked, and the advice fits the data."""

import functools
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tf_mcvae
from tf_mcvae import AMCVAE, LMCVAE, VAE
from tf_mcvae.layers.likelihoods import Likelihood
from tf_mcvae.models import advice

SHAPE = (2, 2, 1)
X = np.random.default_rng(0).integers(0, 2, (8, *SHAPE)).astype(np.float32)
layers = keras.layers


class Poisson(Likelihood):
    support = "the integers 0, 1, 2, ..."

    def elementwise(self, parameters):
        return tfp.distributions.Poisson(log_rate=parameters)

    def in_support(self, x):
        return (x >= 0) & (x == tf.floor(x))


class Pairs(keras.utils.PyDataset):
    def __init__(self, batches, **kwargs):
        super().__init__(**kwargs)
        self.batches, self.epochs = batches, 0

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]

    def on_epoch_end(self):
        self.epochs += 1


class Loader:
    """A loader as PyTorch's: read anew in every epoch, batches are lists."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return (list(batch) for batch in self.batches)


def generator(batches):
    yield from batches


class Frame:
    """What this package uses of a pandas data frame."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def to_numpy(self):
        return self.values


FORMS = {
    "generator": generator,
    "iterator": iter,
    "PyDataset": Pairs,
    "PyDataset, threads": functools.partial(Pairs, workers=2),
    "loader": Loader,
}


def make(model_class=VAE, decoder=None, likelihood="bernoulli", **kwargs):
    options = {"architecture": "dense", "hidden_units": (4,)}
    decoder = decoder or tf_mcvae.Decoder(SHAPE, **options)
    model = model_class(tf_mcvae.Encoder(2, **options), decoder, likelihood=likelihood, **kwargs)
    model.compile("sgd", run_eagerly=True)
    return model


@functools.cache
def built(likelihood="bernoulli"):
    model = make(likelihood=Poisson() if likelihood == "poisson" else likelihood)
    model.build((None, *SHAPE))
    return model


BAD_BATCHES = {
    "bytes": ((255 * X).astype(np.uint8), TypeError, "/ 255`.*uint8"),
    "0 to 255": (255 * X, ValueError, "Divide by 255"),
    "NaN": (X * np.nan, ValueError, "finite"),
    "shape": (X[:, :1], ValueError, "built for examples of shape"),
    "dictionary": ({"x": X}, TypeError, "x of type dict"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("use", "bad"),
    [*(("fit", bad) for bad in BAD_BATCHES)]
    + [(use, "bytes") for use in ("validation", "evaluate", "predict")],
)
def test_every_batch_is_checked(use, bad, form):
    x, error, match = BAD_BATCHES[bad]
    data = FORMS[form]([(X, X), (X, X), (x, X)])
    model = built()
    methods = {
        "fit": lambda: model.fit(data, verbose=0),
        "validation": lambda: model.fit(X, validation_data=data, verbose=0),
        "evaluate": lambda: model.evaluate(data, verbose=0),
        "predict": lambda: model.predict(data, verbose=0),
    }
    with pytest.raises(error, match=rf"^Batch 3 \(index 2\): .*{match}") as info:
        methods[use]()
    assert re.search("Received: [^\n]*$", str(info.value))


def test_batches_of_worker_processes_are_checked():
    data = Pairs([(X,), (X,), (np.zeros([2, *SHAPE]) - 1.0,)], workers=2, use_multiprocessing=True)
    with pytest.raises(ValueError, match=r"^Batch 3 .*needs values in \[0, 1\]"):
        built().evaluate(data, verbose=0)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("form", FORMS)
def test_an_unbuilt_model_is_built_from_the_first_batch_which_is_not_lost(form):
    sums = []

    class Recording(VAE):
        def train_step(self, data):
            sums.append(float(tf.reduce_sum(data[0])))
            return super().train_step(data)

    batches = [(np.full([2, *SHAPE], value, np.float32),) for value in (0.0, 0.25, 0.5)]
    make(Recording).fit(FORMS[form](batches), shuffle=False, verbose=0)
    assert sums == [0.0, 2.0, 4.0]


def test_an_endless_generator_continues_in_the_next_epoch():
    read = []

    def endless():
        for index in range(10_000):
            read.append(index)
            yield X, np.zeros(8), np.ones(8)

    model = make()
    model.fit(endless(), steps_per_epoch=2, epochs=2, verbose=0)
    assert int(model.step) == 4
    assert read == list(range(len(read)))


def test_a_py_dataset_keeps_its_properties():
    data = Pairs([X, X], workers=2, max_queue_size=3)  # Batches without a tuple.
    checked = built().check_inputs(data)
    assert (len(checked), checked.num_batches, checked.workers) == (2, 2, 2)
    assert (checked.max_queue_size, checked.use_multiprocessing) == (3, False)
    checked.on_epoch_end()
    assert data.epochs == 1
    with pytest.raises(ValueError, match=r"at least one batch.*Received"):
        built().check_inputs(Pairs([]))


TAKEN = {
    "booleans": (X > 0, ["bernoulli", "gaussian", "poisson"]),
    "zeros and ones": (X.astype(np.int64), ["bernoulli", "poisson"]),
    "counts": ((9 * X).astype(np.uint8), ["poisson"]),
    "floats of a frame": (Frame(X), ["bernoulli", "gaussian", "poisson"]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_values_that_the_likelihood_takes_are_taken(name):
    x, likelihoods = TAKEN[name]
    expected = np.asarray(x.values if isinstance(x, Frame) else x, np.float32)
    for likelihood in likelihoods:
        keras.utils.set_random_seed(0)
        model = built(likelihood)
        np.testing.assert_array_equal(model.bound(x, 1), model.bound(expected, 1))
        if not isinstance(x, Frame):
            dataset = tf.data.Dataset.from_tensor_slices(x).batch(4)
            np.testing.assert_array_equal(
                np.concatenate(list(model.check_inputs(dataset))), expected
            )
            estimate = tf_mcvae.estimate_elbo(model, x, 2)
            assert estimate.mean == tf_mcvae.estimate_elbo(model, expected, 2).mean


ADVICE = {
    "pixels": (255 * X.astype(np.uint8), "/ 255`"),
    "pixels in 64 bits": (255 * X.astype(np.int64), "/ 255`"),
    "16 bits": (65535 * X.astype(np.uint16), "/ 65535`"),
    "columns": ((1e6 * X).astype(np.int64), "common scale"),
    "signs": (2 * X.astype(np.int64) - 1, r"\+ 1\) / 2"),
    "float pixels": (255 * X, "Divide by 255"),
    "from -1 to 1": (2 * X - 1, r"\(x \+ 1\) / 2"),
    "rounding": (X * np.float32(1.0000001), "rounding: clip"),
    "float columns": (1e6 * X, "Scale each column"),
    "strings": (np.full(X.shape, "a"), "strings into numbers"),
    "strings of a frame": (Frame(np.full(X.shape, "a", object)), "strings into numbers"),
    "objects": (np.full(X.shape, None), "mixed types"),
    "dates": (np.full(X.shape, np.datetime64("2020-01-01")), "dates into numbers"),
    "complex": (X * 1j, "real and imaginary"),
    "sparse": (tf.sparse.from_dense(X), "to_dense"),
    "ragged": (tf.RaggedTensor.from_tensor(X), "to_tensor"),
    "masked": (np.ma.masked_equal(X, 1), "filled"),
    "dictionary": ({"x": X}, "must be an array"),
    "generator": (generator([X]), "must be an array"),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_fits_the_data(name):
    x, match = ADVICE[name]
    with pytest.raises((TypeError, ValueError), match=f"{match}.*Received: ") as info:
        built().bound(x)
    assert ("255" in str(info.value)) == (match in ("/ 255`", "Divide by 255"))
    if type(x) is np.ndarray and x.dtype.kind == "f":  # The same sentence in a graph.
        with pytest.raises(ValueError, match=f"{match}.*Received: "):
            built().evaluate(tf.data.Dataset.from_tensors(x), verbose=0)


def test_integers_of_a_gaussian_are_told_to_be_converted():
    with pytest.raises(TypeError, match=r"; convert the integers.*Received") as info:
        built("gaussian").bound(X.astype(np.int64))
    assert "255" not in str(info.value)


# Warnings.


def decoder_of(*middle, end=None):
    return keras.Sequential([*middle, layers.Dense(4, end), layers.Reshape(SHAPE)])


class Hidden(keras.layers.Layer):
    """A user's layer, which does not show its layers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, z, training=False):
        return self.inner(z)


def functional(end):
    z = keras.Input([2])
    return keras.Model(z, layers.Reshape(SHAPE)(end(layers.Dense(4)(z))))


LOGITS = "takes logits"
ONE_FUNCTION = "inference mode"
DECODERS = {
    "sigmoid": (lambda: decoder_of(end="sigmoid"), LOGITS),
    "relu": (lambda: decoder_of(end="relu"), LOGITS),
    "softplus": (lambda: decoder_of(end="softplus"), LOGITS),
    "own": (lambda: decoder_of(end=lambda x: 1 / (1 + tf.exp(-x))), LOGITS),
    "layer": (lambda: functional(layers.ReLU()), LOGITS),
    "operation": (lambda: functional(keras.ops.sigmoid), LOGITS),
    "nested": (lambda: keras.Sequential([decoder_of(end="sigmoid")]), LOGITS),
    "subclass": (lambda: Hidden(decoder_of(end="sigmoid")), LOGITS),
    "linear": (decoder_of, None),
    "linear subclass": (lambda: Hidden(decoder_of()), None),
    "wide": (lambda: decoder_of(end=lambda x: 10 * tf.tanh(x)), None),
    "sum": (lambda: functional(lambda z: z + layers.Dense(4)(z)), None),
    "batch norm": (lambda: decoder_of(layers.BatchNormalization()), ONE_FUNCTION),
    "hidden": (lambda: decoder_of(Hidden(layers.BatchNormalization())), ONE_FUNCTION),
    "dropout": (lambda: decoder_of(layers.Dropout(0.5)), ONE_FUNCTION),
    "noise": (lambda: decoder_of(layers.GaussianNoise(0.5)), ONE_FUNCTION),
    "no dropout": (lambda: decoder_of(layers.Dropout(0.0)), None),
    "layer norm": (lambda: decoder_of(layers.LayerNormalization()), None),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_that_do_not_suit_are_warned_of(name):
    make_decoder, expected = DECODERS[name]
    decoder = make_decoder()
    decoder(np.zeros([1, 2], np.float32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        advice.check_decoder(decoder, 2, tf_mcvae.Bernoulli())
        advice.check_transitions(decoder)
        advice.check_decoder(decoder, 2, tf_mcvae.Gaussian())
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (expected is not None)
    assert all(expected in message and "Received: " in message for message in messages)


@pytest.mark.parametrize("model_class", [LMCVAE, AMCVAE, VAE])
def test_training_warns_of_a_decoder_once(model_class):
    k = {} if model_class is VAE else {"num_transitions": 1}
    decoder = decoder_of(layers.BatchNormalization(), end="sigmoid")
    model = make(model_class, decoder, **k)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.bound(X)
        model.fit(X, verbose=0)
        model.fit(X, verbose=0)
        model.train_on_batch(X)
    expected = [LOGITS] if model_class is VAE else [LOGITS, ONE_FUNCTION]
    assert len(caught) == len(expected)
    for warning, part in zip(caught, expected, strict=True):
        assert part in str(warning.message)


@pytest.mark.parametrize("form", ["array", "dataset", "generator"])
def test_grey_values_are_warned_of_once(form):
    grey = [(X,), (0.5 * X,)]
    forms = {
        "array": lambda: 0.5 * X,
        "dataset": lambda: tf.data.Dataset.from_tensor_slices(0.5 * X).batch(4),
        "generator": lambda: Pairs(grey),
    }
    model = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.evaluate(forms[form](), verbose=0)
        model.fit(forms[form](), verbose=0)
        make(likelihood="gaussian").evaluate(forms[form](), verbose=0)
        make().evaluate(X, verbose=0)
    assert len(caught) == 1
    assert re.search("0 and 1 alone.*Binarize.*Received: grey", str(caught[0].message))
