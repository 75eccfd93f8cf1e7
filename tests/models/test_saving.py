"""What is frozen, optimizers, checkpoints and custom objects survive saving; errors say why not."""

import copy
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae import AMCVAE, IWAE, LMCVAE, VAE, FlowVAE, Gaussian, StepSize

X = (np.random.default_rng(0).random([8, 6]) < 0.4).astype("float32")


def encoder(**options):
    return tf_mcvae.Encoder(2, "dense", hidden_units=(3,), **options)


def decoder(**options):
    return tf_mcvae.Decoder((6,), "dense", hidden_units=(3,), **options)


def sequential(units, **options):
    return keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(units)], **options)


def functional():
    z = keras.Input((2,))
    return keras.Model(z, keras.layers.Dense(6)(keras.layers.Dense(3)(z)))


@keras.saving.register_keras_serializable("test_saving")
class Late(keras.Model):
    """A network of the user's that makes its layers, in a list, when it is built."""

    def build(self, input_shape):
        self.parts = [keras.layers.Dense(3), keras.layers.Dense(6)]
        self.parts[0].build(input_shape)
        self.parts[1].build((None, 3))

    def call(self, z):
        return self.parts[1](self.parts[0](z))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 6)

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable}


def langevin(**options):
    return LMCVAE(encoder(), decoder(), num_transitions=1, **options)


def built(make, freeze=None):
    model = make()
    model.build((None, 6))
    if freeze is not None:
        freeze(model).trainable = False
    return model


# What is made, and the part of it that is frozen once it is built.
FROZEN = {
    "model": (lambda: VAE(encoder(), decoder()), lambda m: m),
    "model by argument": (lambda: langevin(trainable=False), None),
    "encoder": (lambda: VAE(encoder(), decoder()), lambda m: m.encoder),
    "encoder by argument": (lambda: VAE(encoder(trainable=False), decoder()), None),
    "decoder": (lambda: FlowVAE(encoder(), decoder()), lambda m: m.decoder),
    "layer of an encoder": (lambda: IWAE(encoder(), decoder()), lambda m: m.encoder.chain[1]),
    "layer of a functional model": (
        lambda: VAE(encoder(), functional()),
        lambda m: m.decoder.layers[1],
    ),
    "layer of a Sequential": (
        lambda: VAE(sequential(4), decoder()),
        lambda m: m.encoder.layers[0],
    ),
    "Sequential by argument": (lambda: VAE(sequential(4, trainable=False), decoder()), None),
    "subclass by argument": (lambda: VAE(encoder(), Late(trainable=False)), None),
    "layer of a subclass": (lambda: VAE(encoder(), Late()), lambda m: m.decoder.parts[0]),
    "clone": (
        lambda: AMCVAE(encoder(), decoder(), num_transitions=1, cloned_decoder=True),
        lambda m: m.transition_decoder,
    ),
    "likelihood": (
        lambda: VAE(encoder(), decoder(), likelihood=Gaussian(learned=True)),
        lambda m: m.likelihood,
    ),
    "flow": (lambda: FlowVAE(encoder(), decoder(), num_flows=2), lambda m: m.flow.flows[1]),
    "schedule": (lambda: langevin(schedule="all_learnable"), lambda m: m.schedule),
    "step size": (lambda: langevin(step_size=StepSize(0.1, "learned")), lambda m: m.step_size),
    "drift": (lambda: langevin(learned_drift=True, learned_reverse=True), lambda m: m.drift),
}


def trained_places(model):
    """Returns which of the model's weights are trained, for each layer's own view too."""
    trained = {id(variable) for variable in model.trainable_variables}
    parts = [part.trainable for part in model._flatten_layers()]
    return [id(variable) in trained for variable in model.weights], parts


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_stays_frozen_and_the_optimizer_keeps_its_state(name, tmp_path):
    model = built(*FROZEN[name])
    assert not all(part.trainable for part in model._flatten_layers())
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(tf.cast(tf.fill(variable.shape, number + 3), variable.dtype))
    model.save(tmp_path / "model.keras")
    others = [tf_mcvae.load_model(tmp_path / "model.keras"), copy.deepcopy(model)]
    for other in others:
        assert other.optimizer.iterations == 3
        for new, old in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(new, old)
    others += [keras.models.clone_model(model), type(model).from_config(model.get_config())]
    for other in others:
        other.build((None, 6))
        assert trained_places(other) == trained_places(model)


def test_parts_that_are_frozen_by_argument_are_not_trained():
    for make, part in (
        (lambda: VAE(encoder(trainable=False), decoder()), "encoder"),
        (lambda: VAE(sequential(4, trainable=False), decoder()), "encoder"),
        (lambda: VAE(encoder(), Late(trainable=False)), "decoder"),
    ):
        model = built(make)
        assert getattr(model, part).weights
        assert not {id(v) for v in getattr(model, part).variables} & {
            id(v) for v in model.trainable_variables
        }
        assert model.trainable_variables
    assert built(lambda: langevin(trainable=False)).trainable_variables == []


def test_a_clone_is_frozen_where_the_decoder_is():
    network = Late()
    network.build((None, 2))
    network.parts[0].trainable = False
    make = lambda: LMCVAE(encoder(), network, num_transitions=1, cloned_decoder=True)  # noqa: E731
    model = built(make)
    assert [part.trainable for part in model.transition_decoder.parts] == [False, True]


@pytest.mark.parametrize("before", [True, False], ids=["frozen later", "thawed later"])
def test_the_optimizer_keeps_its_state_if_layers_are_frozen_after_compile(before, tmp_path):
    model = built(lambda: VAE(encoder(), decoder()))
    model.encoder.trainable = before
    model.compile("adam")
    model.train_on_batch(X)
    model.encoder.trainable = not before
    model.save(tmp_path / "model.keras")
    loaded = tf_mcvae.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.iterations == 1
    for new, old in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(new, old)


# Checkpoints of TensorFlow.

CHECKPOINTED = {
    "VAE": lambda: VAE(encoder(), decoder(), likelihood=Gaussian(learned=True)),
    "IWAE": lambda: IWAE(encoder(), sequential(6)),
    "FlowVAE": lambda: FlowVAE(encoder(), decoder(), num_flows=3),
    "LMCVAE": lambda: langevin(learned_drift=True, learned_reverse=True, schedule="all_learnable"),
    "AMCVAE": lambda: AMCVAE(
        encoder(),
        Late(),
        num_transitions=1,
        cloned_decoder=True,
        step_size=StepSize(0.1, "acceptance"),
    ),
}


@pytest.mark.parametrize("is_built", [True, False], ids=["built", "unbuilt"])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_checkpoint_holds_all_weights_and_the_optimizer(name, is_built, tmp_path):
    def compiled():
        model = CHECKPOINTED[name]()
        model.compile("adam")
        return model

    def build(model):
        model.build((None, 6))
        model.optimizer.build(model.trainable_variables)

    model, other = compiled(), compiled()
    build(model)
    for number, variable in enumerate([*model.weights, *model.optimizer.variables]):
        variable.assign(tf.cast(tf.fill(variable.shape, number + 1), variable.dtype))
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    if is_built:
        build(other)
    tf.train.Checkpoint(model=other).restore(path)
    if not is_built:
        build(other)
    for attribute in (lambda m: m.weights, lambda m: m.optimizer.variables):
        for new, old in zip(attribute(other), attribute(model), strict=True):
            np.testing.assert_array_equal(new, old, err_msg=old.path)


# Files that are not damaged.


class Mine(LMCVAE):
    pass


class MyLikelihood(tf_mcvae.Bernoulli):
    pass


class MySchedule(tf_mcvae.layers.LinearSchedule):
    pass


class MyStepSize(StepSize):
    pass


class MyFlow(tf_mcvae.flows.RealNVP):
    pass


class MyDrift(tf_mcvae.layers.LearnedDrift):
    pass


def my_activation(x):
    return x


CUSTOM = {
    "Mine": lambda: Mine(encoder(), decoder(), num_transitions=1),
    "MyLikelihood": lambda: VAE(encoder(), decoder(), likelihood=MyLikelihood()),
    "MySchedule": lambda: langevin(schedule=MySchedule()),
    "MyStepSize": lambda: langevin(step_size=MyStepSize(0.1)),
    "MyFlow": lambda: FlowVAE(encoder(), decoder(), flow=MyFlow((3,)), num_flows=2),
    "MyDrift": lambda: langevin(learned_drift=MyDrift()),
    "my_activation": lambda: VAE(encoder(), decoder(activation=my_activation)),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_unknown_classes_are_named_and_can_be_given(name, tmp_path, monkeypatch):
    # Keras up to 3.8 imports the module that a file names, so it must be missing.
    monkeypatch.setattr(globals()[name], "__module__", "script_that_is_not_here")
    model, path = built(CUSTOM[name]), tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(ValueError, match=rf"not known here, '{name}'.*custom_objects.*Received: "):
        tf_mcvae.load_model(path)
    objects = {name: globals()[name]}
    loaded = tf_mcvae.load_model(path, custom_objects=objects)
    np.testing.assert_array_equal(loaded.bound(X, 1), model.bound(X, 1))
    type(model).from_config(model.get_config(), custom_objects=objects)


def test_a_lambda_is_refused_unless_it_is_trusted(tmp_path):
    network = keras.Sequential([keras.layers.Dense(6), keras.layers.Lambda(lambda x: x)])
    model, path = built(lambda: VAE(encoder(), network)), tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(ValueError, match=r"lambda.*safe_mode=False.*Received: "):
        tf_mcvae.load_model(path)
    loaded = tf_mcvae.load_model(path, safe_mode=False)
    np.testing.assert_array_equal(loaded.bound(X, 1), model.bound(X, 1))


def test_other_reasons_are_given_as_they_are(tmp_path):
    class NoArguments(keras.layers.Dense):
        def __init__(self):
            super().__init__(6)

    model = built(lambda: VAE(encoder(), NoArguments()))
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"not damaged.*unexpected keyword argument.*Received: "):
        tf_mcvae.load_model(tmp_path / "model.keras", custom_objects={"NoArguments": NoArguments})
    model.save_weights(tmp_path / "x.weights.h5")
    shutil.copy(tmp_path / "x.weights.h5", tmp_path / "weights.keras")
    with pytest.raises(ValueError, match=r"HDF5.*load_weights.*Received: "):
        tf_mcvae.load_model(tmp_path / "weights.keras")


def test_files_of_other_versions_are_called_so(tmp_path):
    built(lambda: VAE(encoder(), decoder())).save(tmp_path / "old.keras")
    with (
        zipfile.ZipFile(tmp_path / "old.keras") as old,
        zipfile.ZipFile(tmp_path / "new.keras", "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name).replace(b'"num_samples"', b'"num_draws": 2, "num_samples"')
            new.writestr(name, content.replace(keras.__version__.encode(), b"9.1.0"))
    with pytest.raises(ValueError, match=r"not damaged.*num_draws.*Keras 9\.1\.0, and Keras 3"):
        tf_mcvae.load_model(tmp_path / "new.keras")


def test_a_folder_is_called_so(tmp_path):
    with pytest.raises(ValueError, match=r"a folder.*tf\.saved_model\.load.*Received: "):
        tf_mcvae.load_model(tmp_path)


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx", "litert", "openvino"])
def test_export_names_the_functions_that_export(format, tmp_path):
    model = built(lambda: VAE(encoder(), decoder()))
    with pytest.raises(ValueError, match=r"export_saved_model.*Received: "):
        model.export(tmp_path / "x", format=format)
