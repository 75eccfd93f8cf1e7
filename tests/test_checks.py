import copy
import inspect
import pickle

import keras
import pytest
import tensorflow as tf

from tf_mcvae.checks import ExplicitArguments, suggest


@keras.saving.register_keras_serializable("test_checks")
class Scale(ExplicitArguments, keras.layers.Layer):
    def __init__(self, factor=1.0, *, name=None, trainable=True, dtype=None):
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("test_checks")
class Network(ExplicitArguments, keras.Model):
    def __init__(self, units, *, name=None, trainable=True, dtype=None):
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.units, self.dense = units, keras.layers.Dense(units)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Loose(Scale):
    def __init__(self, other=2, **kwargs):
        super().__init__(**kwargs)
        self.other = other


def test_suggest():
    assert suggest("num_transition", ["seed", "num_transitions"]) == (
        " Did you mean 'num_transitions'?"
    )
    assert suggest("xyz", ["seed", "num_transitions"]) == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Scale(facter=2.0),
            "Scale has no argument 'facter'. Did you mean 'factor'? Received: facter=2.0",
        ),
        (lambda: Network(3, xyz=1), "Network has no argument 'xyz'. Received: xyz=1"),
        (
            lambda: Network.from_config({"units": 3, "unit": 4}),
            "Network has no argument 'unit'. Did you mean 'units'? Received: unit=4",
        ),
        # Its **kwargs pass the argument to the inherited constructor.
        (lambda: Loose(facter=2.0), "unexpected keyword argument 'facter'"),
        (lambda: Network(), "missing 1 required positional argument: 'units'"),
    ],
)
def test_unknown_arguments(make, message):
    with pytest.raises(TypeError) as error:
        make()
    assert message in str(error.value)


def test_signature():
    assert list(inspect.signature(Scale).parameters) == ["factor", "name", "trainable", "dtype"]
    assert list(inspect.signature(Network).parameters) == ["units", "name", "trainable", "dtype"]
    assert list(inspect.signature(Loose).parameters) == ["other", "kwargs"]


@pytest.mark.parametrize("make", [lambda: Scale(2.0, name="a"), lambda: Network(4, name="a")])
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: type(layer).from_config(layer.get_config()),
    ],
)
def test_copies(make, duplicate):
    layer = make()
    x = tf.ones([2, 3])
    before = layer(x)
    other = duplicate(layer)
    after = other(x)
    assert other.get_config() == layer.get_config()
    assert after.shape == before.shape
    if other.weights:
        other.set_weights(layer.get_weights())
    assert tf.reduce_all(other(x) == before)


def test_saved_file(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Scale(2.0), Network(4)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert tf.reduce_all(loaded(tf.ones([2, 3])) == model(tf.ones([2, 3])))


def test_positional_arguments():
    assert Scale(3.0).factor == 3.0
    assert Loose(factor=3.0).factor == 3.0
