"""Models inside `tf.data`, and their encoders inside other Keras models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_mcvae
from tf_mcvae import EncoderFeatures, random

SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).random((60, *SHAPE), np.float32)
LABELS = np.arange(60) % 3


def make_model(kind=tf_mcvae.VAE, encoder=None, **options):
    keras.utils.set_random_seed(1)
    own, decoder = networks()
    model = kind(encoder or own, decoder, **options)
    model.build((None, *SHAPE))
    return model


def networks():
    options = {"architecture": "dense", "hidden_units": (16,)}
    return tf_mcvae.Encoder(3, **options), tf_mcvae.Decoder(SHAPE, **options)


def row_seeds(number):
    number = tf.cast(number, tf.int32)
    return tf.stack([number, tf.fill(tf.shape(number), 7)], axis=1)


def mapped(function, workers, batch_size=16):
    """The outputs of a function of numbers and images in a pipeline, each as one array."""
    batches = tf.data.Dataset.from_tensor_slices(IMAGES).enumerate().batch(batch_size)
    results = list(batches.map(function, num_parallel_calls=workers).as_numpy_iterator())
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model = make_model()
    path = tf_mcvae.export_saved_model(model, tmp_path_factory.mktemp("served"), num_samples=2)
    return model, tf.saved_model.load(str(path))


class TestMap:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            (tf_mcvae.VAE, {}),
            pytest.param(tf_mcvae.AMCVAE, {"num_transitions": 1}, marks=pytest.mark.slow),
            pytest.param(tf_mcvae.LMCVAE, {"num_transitions": 1}, marks=pytest.mark.slow),
            pytest.param(tf_mcvae.FlowVAE, {}, marks=pytest.mark.slow),
        ],
    )
    def test_of_a_keras_model_gives_the_same_numbers_in_parallel(self, kind, options):
        model = make_model(kind, **options)

        # Traced once for all the checks below.
        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, *SHAPE])]
        )
        def run(number, x):
            loc, scale = model.encode(x)
            draws = model.posterior_sample(x, 2, seed=random.per_row(row_seeds(number)))
            return loc, scale, tf.transpose(draws, [1, 0, 2]), model.reconstruct(x)

        alone = mapped(run, None)
        for one, other in zip(alone, mapped(run, 4), strict=True):
            np.testing.assert_array_equal(one, other)
        # Equal, to rounding, to results outside a pipeline and in batches of another size.
        whole = run(np.arange(60), IMAGES)
        for one, other, expected in zip(alone, mapped(run, 4, 25), whole, strict=True):
            np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-4)
        assert len(np.unique(alone[2])) == alone[2].size  # No two rows share their draws.

    def test_of_a_saved_model_gives_the_keras_models_numbers(self, served):
        model, loaded = served

        def run(number, x):
            code = loaded.signatures["encode"](x=x)
            draw = loaded.signatures["posterior_sample"](x=x, seed=row_seeds(number))
            return code["loc"], code["scale"], draw["z"]

        def expected(number, x):
            draws = model.posterior_sample(x, seed=random.per_row(row_seeds(number)))
            return *model.encode(x), draws[0]

        alone = mapped(run, None)
        for one, other, same in zip(alone, mapped(run, 4), mapped(expected, 4), strict=True):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-5)

    def test_of_the_bare_method(self):
        model = make_model()
        batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(60).map(model.encode, 2)
        for one, other in zip(next(iter(batches)), model.encode(IMAGES), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)

    def test_without_a_seed_is_refused(self):
        model = make_model()
        with pytest.raises(ValueError, match=r"Inside a tf\.function, pass a `seed`"):
            mapped(lambda number, x: [model.posterior_sample(x)[0]], None)

    def test_bytes_and_models_without_weights_are_refused(self):
        batches = tf.data.Dataset.from_tensor_slices((255 * IMAGES).astype(np.uint8)).batch(5)
        with pytest.raises(TypeError, match=r"floating-point.*Received: tensors of uint8"):
            batches.map(make_model().encode)
        with pytest.raises(ValueError, match="Received: "):
            tf.data.Dataset.from_tensor_slices(IMAGES).batch(5).map(
                tf_mcvae.VAE(*networks()).encode
            )

    def test_of_a_saved_model_checks_values(self, served):
        encode = served[1].signatures["encode"]
        batches = tf.data.Dataset.from_tensor_slices(IMAGES * np.nan).batch(5)
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be finite"):
            list(batches.map(lambda x: encode(x=x)))


def classifier(features):
    inputs = keras.Input(SHAPE)
    outputs = keras.layers.Dense(3, "softmax")(features(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


class TestEncoderFeatures:
    def test_outputs_are_those_of_the_model(self):
        model = make_model()
        loc, scale = model.encode(IMAGES)
        np.testing.assert_allclose(EncoderFeatures(model)(IMAGES), loc, rtol=1e-6)
        both = EncoderFeatures(model, "loc_and_scale")(IMAGES)
        np.testing.assert_allclose(both, np.concatenate([loc, scale], axis=1), rtol=1e-6)

    def test_samples_have_the_posterior_as_distribution(self):
        # Mean of 1000 x 3 normal draws and their mean square, |z| < 5 each: once in 9e5 runs.
        model = make_model()
        layer = EncoderFeatures(model, "sample", seed=3)
        x = np.repeat(IMAGES[:1], 1000, axis=0)
        loc, scale = model.encode(x)
        first, second = layer(x), layer(x)
        noise = ((first - loc) / scale).numpy()
        assert abs(noise.mean()) < 5 / np.sqrt(3000)
        assert abs(np.mean(noise**2) - 1) < 5 * np.sqrt(2 / 3000)
        assert np.all(np.any(first.numpy() != second.numpy(), axis=1))
        np.testing.assert_array_equal(first, EncoderFeatures(model, "sample", seed=3)(x))
        assert np.any(first != EncoderFeatures(model, "sample", seed=4)(x))

    def test_samples_differ_between_the_steps_of_a_graph(self):
        model = keras.Sequential([keras.Input(SHAPE), EncoderFeatures(make_model(), "sample")])
        assert np.any(model.predict(IMAGES, verbose=0) != model.predict(IMAGES, verbose=0))

    @pytest.mark.parametrize(
        ("output", "jit_compile"),
        [
            ("loc", False),
            pytest.param("loc_and_scale", False, marks=pytest.mark.slow),
            pytest.param("sample", True, marks=pytest.mark.slow),
        ],
    )
    def test_is_frozen_until_it_is_thawed(self, output, jit_compile):
        model = make_model()
        before = [np.array(w) for w in model.get_weights()]
        features = EncoderFeatures(model, output)
        head = classifier(features)
        head.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit_compile)
        assert len(head.trainable_variables) == 2
        head.fit(IMAGES, LABELS, verbose=0)
        for own, old in zip(
            features.encoder.get_weights(), model.encoder.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(own, old)
        features.trainable = True
        head.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit_compile)
        assert len(head.trainable_variables) == 2 + len(model.encoder.trainable_variables)
        head.fit(IMAGES, LABELS, verbose=0)
        changed = zip(features.encoder.get_weights(), model.encoder.get_weights(), strict=True)
        assert all(np.any(own != old) for own, old in changed)
        # The original model is unchanged, and can still be trained.
        for now, old in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, old)
        assert len(model.encoder.trainable_variables) == 4

    def test_frozen_features_are_those_of_inference(self):
        encoder = keras.Sequential(
            [
                keras.Input(SHAPE),
                keras.layers.Flatten(),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(6),
            ]
        )
        layer = EncoderFeatures(make_model(encoder=encoder))
        np.testing.assert_array_equal(layer(IMAGES, training=True), layer(IMAGES))
        layer.trainable = True
        assert np.any(layer(IMAGES, training=True) != layer(IMAGES))

    @pytest.mark.parametrize(
        ("architecture", "output"), [("dense", "sample"), ("conv", "loc_and_scale")]
    )
    def test_is_saved_with_the_model_that_it_is_in(self, tmp_path, architecture, output):
        vae = make_model(encoder=tf_mcvae.Encoder(3, architecture=architecture))
        vae.save(tmp_path / "vae.keras")
        features = EncoderFeatures(tmp_path / "vae.keras", output, seed=5, name="features")
        np.testing.assert_allclose(
            EncoderFeatures(str(tmp_path / "vae.keras"))(IMAGES), vae.encode(IMAGES)[0], rtol=1e-5
        )
        head = classifier(features)
        head.fit(IMAGES, LABELS, verbose=0)
        (tmp_path / "vae.keras").unlink()
        head.save(tmp_path / "head.keras")
        loaded = keras.models.load_model(tmp_path / "head.keras")
        np.testing.assert_array_equal(
            loaded.predict(IMAGES, verbose=0), head.predict(IMAGES, verbose=0)
        )
        again = loaded.get_layer("features")
        assert (again.output_kind, again.seed, again.trainable) == (output, 5, False)
        assert len(loaded.trainable_variables) == 2
        again.trainable = True
        assert len(loaded.trainable_variables) == 2 + len(vae.encoder.trainable_variables)

    def test_in_half_precision(self):
        layer = EncoderFeatures(make_model(), "loc_and_scale", dtype="mixed_bfloat16")
        assert layer(IMAGES).dtype == tf.bfloat16

    def test_of_a_pipeline(self):
        model = make_model()
        layer = EncoderFeatures(model)
        layer.build((None, *SHAPE))
        (loc,) = mapped(lambda number, x: (layer(x),), 2)
        np.testing.assert_allclose(loc, model.encode(IMAGES)[0], rtol=1e-6)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: EncoderFeatures(IMAGES), TypeError, "`encoder` must be.*Received: ndarray"),
            (lambda: EncoderFeatures("no.keras"), ValueError, "no such file"),
            (lambda: EncoderFeatures(make_model(), "mean"), ValueError, "`output`.*'mean'"),
            (lambda: EncoderFeatures(make_model(), seed=0.5), TypeError, "`seed`"),
            (lambda: EncoderFeatures(keras.layers.Dense(3))(IMAGES), ValueError, "latent_dim"),
            (
                lambda: EncoderFeatures(tf_mcvae.VAE(tf_mcvae.Encoder(2), tf_mcvae.Decoder(SHAPE))),
                ValueError,
                "unbuilt",
            ),
            (
                lambda: EncoderFeatures(make_model())(np.zeros((2, *SHAPE), np.uint8)),
                TypeError,
                r"(?s)Rescaling\(1 / 255\).*Received: images of.*uint8",
            ),
        ],
    )
    def test_errors(self, make, error, message):
        with pytest.raises(error, match=message):
            make()
