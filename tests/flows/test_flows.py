"""Flows against autodiff Jacobians, float64 twins and quadrature, and the model with a flow.

To test a new flow, add a line to `FLOWS`.
"""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import LinearGaussian, normal_log_prob, within

import tf_mcvae
from tf_mcvae import BNAF, IAF, VAE, FlowStack, FlowVAE, RealNVP
from tf_mcvae.flows import get_flow
from tf_mcvae.models.batch import Batch

FLOWS = {
    "realnvp": lambda: RealNVP((8, 6)),
    "realnvp-linear": lambda: RealNVP(()),
    "iaf": lambda: IAF((8, 6)),
    "iaf-narrow": lambda: IAF([2]),
    "bnaf": lambda: BNAF([4]),
    "bnaf-deep": lambda: BNAF((3, 2)),
    "realnvp-stack": lambda: FlowStack(RealNVP((8,)), 3),
    "iaf-stack": lambda: FlowStack(IAF((8,)), 2),
    "bnaf-stack": lambda: FlowStack(BNAF(), 2),
}
AUTOREGRESSIVE = ["iaf", "iaf-narrow", "bnaf", "bnaf-deep"]
INVERTIBLE = [name for name in FLOWS if "bnaf" not in name]
DIMENSIONS = [2, 3, 5]


def move(layer, size=0.4, seed=0):
    """Perturbs all weights, so that the flow is far from the identity, as after training."""
    rng = np.random.default_rng(seed)
    layer.set_weights([w + size * rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def make(name, latent_dim, num_flows=1):
    keras.utils.set_random_seed(0)
    flow = FLOWS[name]() if num_flows == 1 else FlowStack(FLOWS[name](), num_flows)
    flow.build((None, latent_dim))
    return move(flow)


def states(latent_dim, num=20, seed=1):
    return np.random.default_rng(seed).normal(size=[num, latent_dim]).astype(np.float32)


def jacobian(flow, u):
    """`dz_i / du_j`, `[N, D, D]`."""
    u = tf.constant(u)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(u)
        columns = tf.unstack(flow.forward(u)[0], axis=1)
    slopes = [tape.gradient(value, u) for value in columns]
    return np.stack(slopes, axis=1).astype(np.float64)


# The map and its log-determinant.


@pytest.mark.parametrize("latent_dim", DIMENSIONS)
@pytest.mark.parametrize("name", FLOWS)
def test_log_determinant_is_that_of_the_jacobian(name, latent_dim):
    flow, u = make(name, latent_dim), states(latent_dim)
    sign, expected = np.linalg.slogdet(jacobian(flow, u))
    log_det = flow.forward(u)[1]
    np.testing.assert_allclose(log_det, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(sign, 1)
    assert np.std(expected) > 0.01  # Not that of a linear map.


@pytest.mark.parametrize("latent_dim", [1, *DIMENSIONS])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_inverse_undoes_the_map(name, latent_dim):
    if latent_dim == 1 and "realnvp" in name:
        return
    flow, u = make(name, latent_dim), states(latent_dim).reshape(4, 5, latent_dim)
    z, _ = flow.forward(u)
    assert np.max(np.abs(z - u)) > 0.1
    np.testing.assert_allclose(flow.inverse(z), u, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latent_dim", DIMENSIONS)
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autoregressive_flows_have_triangular_jacobians(name, latent_dim):
    slopes = jacobian(make(name, latent_dim), states(latent_dim))
    np.testing.assert_array_equal(np.triu(slopes, 1), 0)
    assert np.all(np.diagonal(slopes, axis1=1, axis2=2) > 0)
    # All allowed dependencies exist. (Two hidden units can only have two degrees.)
    below = slopes[:, *np.tril_indices(latent_dim, -1)]
    assert name == "iaf-narrow" or np.all(np.any(below != 0, axis=0))


@pytest.mark.parametrize("latent_dim", [*DIMENSIONS, 300])
@pytest.mark.parametrize("name", ["realnvp", "iaf", "bnaf"])
def test_two_flows_transform_every_dimension(name, latent_dim):
    """One RealNVP leaves half of them as they are."""
    u = states(latent_dim)
    moved = [
        np.any(np.abs(make(name, latent_dim, num).forward(u)[0] - u) > 1e-3, axis=0)
        for num in (1, 2, 3)
    ]
    assert np.all(moved[1])
    assert np.all(moved[2])
    if name == "realnvp":
        np.testing.assert_array_equal(moved[0], np.arange(latent_dim) >= latent_dim // 2)


@pytest.mark.parametrize("name", FLOWS)
def test_density_integrates_to_one(name):
    """`int p(T(u)) |det T'(u)| du = 1` by the trapezoid rule, if the range of T is the plane.

    The test is deterministic: for smooth functions the rule is much more exact than the tolerance.
    """
    grid = np.linspace(-12, 12, 481).astype(np.float32)
    u = np.stack(np.meshgrid(grid, grid), axis=-1)
    z, log_det = make(name, 2).forward(u)
    log_prob = normal_log_prob(z, 0.3, 0.8) + np.asarray(log_det, np.float64)
    integral = np.sum(np.exp(log_prob)) * (grid[1] - grid[0]) ** 2
    assert integral == pytest.approx(1.0, abs=2e-3)


def twin_realnvp(flow, u):
    kernels, biases = [np.asarray(k, np.float64) for k in flow.kernels], flow.biases
    kept = u.shape[-1] // 2
    h = u[:, :kept] @ kernels[0] + biases[0]
    for kernel, bias in zip(kernels[1:], biases[1:], strict=True):
        h = np.tanh(h) @ kernel + bias
    shift, log_scale = np.split(h, 2, axis=-1)
    log_scale = 3 * np.tanh(log_scale / 3)
    rest = u[:, kept:] * np.exp(log_scale) + shift
    return np.concatenate([u[:, :kept], rest], axis=-1), np.sum(log_scale, -1)


def twin_bnaf(flow, u):
    """With full weight matrices, and the Jacobian as the product of the layers' matrices."""
    num, latent_dim = u.shape
    h, slopes = u, np.tile(np.eye(latent_dim), [num, 1, 1])
    for i, (log_diagonal, kernel) in enumerate(zip(flow.log_diagonals, flow.kernels, strict=True)):
        if i:
            slopes, h = slopes * (1 - np.tanh(h) ** 2)[:, np.newaxis], np.tanh(h)
        _, size, units = log_diagonal.shape
        earlier = np.kron(np.triu(np.ones([latent_dim] * 2), 1), np.ones([size, units]))
        weight = np.asarray(kernel, np.float64) * earlier
        for d in range(latent_dim):
            weight[d * size : (d + 1) * size, d * units : (d + 1) * units] = np.exp(log_diagonal[d])
        h, slopes = h @ weight + flow.biases[i], slopes @ weight
    gate = 1 / (1 + np.exp(-float(flow.gate)))
    slopes = gate * slopes + (1 - gate) * np.eye(latent_dim)
    return gate * h + (1 - gate) * u, np.linalg.slogdet(slopes)[1]


@pytest.mark.parametrize("name", ["realnvp", "realnvp-linear", "bnaf", "bnaf-deep"])
def test_maps_are_their_float64_twins(name):
    flow, u = make(name, 5), states(5)
    twin = twin_bnaf if "bnaf" in name else twin_realnvp
    for value, expected in zip(flow.forward(u), twin(flow, u.astype(np.float64)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_iaf_is_its_formula():
    """Earlier dimensions shift and scale each dimension, by the outputs of the network."""
    flow, u = make("iaf", 5), states(5)
    shift, log_scale = flow._shift_and_log_scale(tf.constant(u))
    expected = (np.asarray(u, np.float64) - shift) * np.exp(-np.asarray(log_scale, np.float64))
    np.testing.assert_allclose(flow.forward(u)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_far_states_and_large_weights_stay_finite(name):
    flow = move(make(name, 5), size=3.0)
    u = 30 * states(5)
    u = tf.constant(u)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(u)
        z, log_det = flow.forward(u)
    values = [z, log_det, tape.gradient(z, u), tape.gradient(log_det, u)]
    assert all(np.all(np.isfinite(value)) for value in values)


# The layers.


@pytest.mark.parametrize("num_flows", [1, 2, 3])
@pytest.mark.parametrize("latent_dim", [2, 3, 300])
@pytest.mark.parametrize("name", ["realnvp", "iaf", "bnaf"])
def test_flows_begin_at_the_identity(name, latent_dim, num_flows):
    """BNAF starts near it: its log-determinant is below 0.05 for each flow and dimension."""
    keras.utils.set_random_seed(0)
    stack = FlowStack(name, num_flows)
    u = states(latent_dim)
    z, log_det = stack(u)
    if name == "bnaf":
        assert np.sqrt(np.mean((z - u) ** 2)) < 0.1 * num_flows
        assert np.max(np.abs(log_det)) < 0.05 * num_flows * latent_dim
        assert np.max(np.abs(log_det)) > 0
    else:
        np.testing.assert_array_equal(z, u)
        np.testing.assert_array_equal(log_det, 0)


@pytest.mark.parametrize("name", FLOWS)
def test_leading_axes_are_kept(name):
    flow, u = make(name, 3), states(3, 24)
    z, log_det = flow.forward(u)
    folded = flow.forward(u.reshape(2, 3, 4, 3))
    assert folded[0].shape == (2, 3, 4, 3)
    np.testing.assert_allclose(folded[0], tf.reshape(z, [2, 3, 4, 3]), rtol=1e-6)
    np.testing.assert_allclose(folded[1], tf.reshape(log_det, [2, 3, 4]), rtol=1e-6, atol=1e-6)
    called = flow(u)
    np.testing.assert_array_equal(called[0], z)
    np.testing.assert_allclose(flow.forward(u[0])[1], log_det[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_configuration_round_trip(name):
    flow = make(name, 3)
    config = json.dumps(keras.saving.serialize_keras_object(flow))
    copy = keras.saving.deserialize_keras_object(json.loads(config))
    assert json.dumps(copy.get_config()) == json.dumps(flow.get_config())
    copy.set_weights(flow.get_weights())
    for value, expected in zip(copy.forward(states(3)), flow.forward(states(3)), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_stack_begins_with_the_layer_given_and_copies_its_configuration():
    flow = BNAF((3, 2))
    stack = FlowStack(flow, 3)
    stack.build((None, 4))
    assert stack.flows[0] is flow
    assert [f.hidden_units for f in stack.flows] == [(3, 2)] * 3
    assert len({f.name for f in stack.flows}) == 3
    assert len(stack.trainable_weights) == 3 * len(flow.trainable_weights)
    kernels = [f.kernels[0].numpy() for f in stack.flows]
    assert all(not np.allclose(a, b) for a, b in itertools.combinations(kernels, 2))


def test_stacks_can_be_stacked():
    keras.utils.set_random_seed(0)
    stack = FlowStack(FlowStack(IAF((4,)), 2), 2)
    stack.build((None, 3))
    u = states(3)
    sign, expected = np.linalg.slogdet(jacobian(move(stack), u))
    np.testing.assert_allclose(stack.forward(u)[1], expected, rtol=1e-4, atol=1e-4)
    assert len(stack.weights) == 4 * len(stack.flows[0].flows[0].weights)
    assert np.all(sign == 1)


def assert_compiles(function):
    """Values and gradients are equal in eager and XLA execution, and none is 0 everywhere."""
    expected = function()
    assert all(np.any(value != 0) for value in expected)
    for value, other in zip(tf.function(function, jit_compile=True)(), expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-4)


def test_xla_gives_the_same_values_and_gradients():
    flow, u = make("realnvp-stack", 3), tf.constant(states(3))

    def gradients():
        with tf.GradientTape() as tape:
            z, log_det = flow.forward(u)
            value = tf.reduce_mean(tf.reduce_sum(z**2, -1) - log_det)
        return value, *tape.gradient(value, [w.value for w in flow.trainable_weights])

    assert_compiles(gradients)


BAD_CALLS = {
    "name": (lambda: get_flow("glow"), "one of .*'realnvp'"),
    "no name": (lambda: FlowStack(None), "`flow` must be one of"),
    "no flows": (lambda: FlowStack("iaf", 0), "num_flows"),
    "width 0": (lambda: IAF((8, 0)), "hidden_units"),
    "width, not widths": (lambda: BNAF(8), "`hidden_units` must be a list"),
    "one dimension": (lambda: RealNVP().build((None, 1)), "two or more.* IAF or BNAF"),
    "unknown dimension": (lambda: IAF().build((None, None)), "its dimension D"),
    "not built": (lambda: IAF().forward(states(2)), r"`flow.build\(\(None, D\)\)`"),
    "other dimension": (lambda: make("iaf", 3).forward(states(2)), r"states \[\.\.\., 3\]"),
    "scalar": (lambda: make("iaf", 3).forward(0.0), r"states \[\.\.\., 3\]"),
    "no inverse": (lambda: make("bnaf", 3).inverse(states(3)), "no inverse.* RealNVP or IAF"),
    "no inverse in a stack": (lambda: make("bnaf-stack", 3).inverse(states(3)), "no inverse"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name):
    call, match = BAD_CALLS[name]
    with pytest.raises((TypeError, ValueError), match=match) as info:
        call()
    assert "Received: " in str(info.value)


# The model.

PPCA = LinearGaussian()
X = PPCA.data(6)


@pytest.mark.parametrize("flow", ["realnvp", "iaf"])
def test_flow_of_no_effect_is_the_vae(flow):
    """Equal log weights for equal seeds, including constants, and the exact ELBO."""
    model, vae = PPCA.model(FlowVAE, flow=flow, num_flows=2), PPCA.model(VAE)
    expected = vae.log_weights(X, seed=3, num_samples=2000)
    log_weights = model.log_weights(X, seed=3, num_samples=2000)
    np.testing.assert_allclose(log_weights, expected, rtol=1e-5, atol=1e-5)
    # At 5 standard errors, a false alarm in 1.7 million for each of 6 numbers.
    assert within(log_weights, PPCA.elbo(X))
    np.testing.assert_allclose(model.bound(X, 3, 7), vae.bound(X, 3, 7), rtol=1e-5)
    np.testing.assert_allclose(model.reconstruct(X), vae.reconstruct(X), rtol=1e-5, atol=1e-6)


def moved_model(flow):
    keras.utils.set_random_seed(0)
    model = PPCA.model(FlowVAE, flow=flow, num_flows=2)
    move(model.flow, 0.1)
    return model


@pytest.mark.parametrize("flow", ["realnvp", "iaf", "bnaf"])
def test_log_weights_are_their_formula(flow):
    model = moved_model(flow)
    seed = tf.constant([4, 2])
    loc, scale = model.encode(X)
    u = model.draw_posterior(model.posterior(Batch(X)), 5, tf_mcvae.random.split(seed)[0])
    sign, log_det = np.linalg.slogdet(
        jacobian(model.flow, tf.reshape(u, [-1, 2])).reshape(5, 6, 2, 2)
    )
    z = np.asarray(model.flow.forward(u)[0], np.float64)
    expected = PPCA.log_joint(X, z) + log_det - normal_log_prob(u, loc, scale)
    np.testing.assert_allclose(model.log_weights(X, seed, 5), expected, rtol=1e-4, atol=1e-4)
    assert np.all(sign == 1)
    estimate = model.estimate(Batch(tf.constant(X)), seed, training=False)
    np.testing.assert_allclose(estimate.bound, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(estimate.loss, -expected[0], rtol=1e-4, atol=1e-4)


def test_path_is_in_the_base_space_and_samples_are_after_the_flow():
    model = moved_model("bnaf")
    posterior = model.posterior(Batch(X))
    u = model.draw_posterior(posterior, 5, tf.constant([4, 2]))
    z, log_det = model.flow.forward(u)
    ends = model.path(Batch(tf.constant(X)), posterior).endpoints(u)
    np.testing.assert_allclose(ends.log_q, posterior.log_prob(tf.identity(u)), rtol=1e-5)
    np.testing.assert_allclose(ends.log_p, model.log_joint(X, z) + log_det, rtol=1e-5)
    np.testing.assert_allclose(model.posterior_sample(X, 5, [4, 2]), z, rtol=1e-6)
    assert np.max(np.abs(z - u)) > 0.05
    center = model.flow.forward(model.encode(X)[0])[0]
    np.testing.assert_allclose(model.reconstruct(X), model.decode(center), rtol=1e-6)


@pytest.mark.parametrize(
    "make_flow",
    [lambda: IAF((4,)), pytest.param(lambda: BNAF((3,)), marks=pytest.mark.slow)],
    ids=["iaf", "bnaf"],
)
def test_xla_trains_as_eager_does(make_flow):
    """All networks get a gradient. The gradient of a score through the flow compiles too."""
    model = moved_model(make_flow())
    weights = [w.value for w in model.trainable_weights]

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.estimate(Batch(X), tf.constant([1, 2]), True).loss)
            ends = model.path(Batch(X), model.posterior(Batch(X))).endpoints(tf.ones([3, 6, 2]))
            loss += tf.reduce_mean(ends.score(0.4) ** 2)
        return tape.gradient(loss, weights)

    assert_compiles(gradients)


def test_flow_computes_in_float32_in_a_model_of_mixed_precision():
    keras.utils.set_random_seed(0)
    options = {"architecture": "dense", "hidden_units": (8,), "dtype": "mixed_bfloat16"}
    networks = tf_mcvae.Encoder(3, **options), tf_mcvae.Decoder((4, 4, 1), **options)
    model = FlowVAE(*networks, flow="iaf", num_flows=2, dtype="mixed_bfloat16")
    model.build((None, 4, 4, 1))
    move(model.flow, 0.1)
    x = np.zeros([3, 4, 4, 1], np.float32)
    center, _ = model.flow.forward(model.encode(x)[0])
    np.testing.assert_array_equal(model(x), tf.cast(model.decode(center), model(x).dtype))
    assert all(w.dtype == "float32" for w in model.flow.weights)


class Bend(keras.layers.Layer):
    """`z -> z_2 - z_1^2 / 2 + 1`, whose posterior is banana-shaped."""

    def call(self, z):
        return z[:, 1:] - 0.5 * z[:, :1] ** 2 + 1.0


def bent_evidence(sigma):
    """`log p(x)` of x = 0 by quadrature."""
    grid = np.linspace(-8, 8, 801)
    z = np.stack(np.meshgrid(grid, grid), axis=-1)
    mean = z[..., 1:] - 0.5 * z[..., :1] ** 2 + 1.0
    log_joint = normal_log_prob(z, 0, 1) + normal_log_prob(0.0, mean, sigma)
    return np.log(np.sum(np.exp(log_joint)) * (grid[1] - grid[0]) ** 2)


def gap_after_training(model_class, **kwargs):
    """The gap between evidence and ELBO after training the encoder with a fixed decoder."""
    keras.utils.set_random_seed(0)
    encoder, decoder = keras.Sequential([keras.layers.Dense(4)]), keras.Sequential([Bend()])
    likelihood = tf_mcvae.Gaussian(0.3)
    model = model_class(encoder, decoder, likelihood=likelihood, num_samples=50, **kwargs)
    model.compile(keras.optimizers.Adam(0.02))
    x = np.zeros([400, 1], np.float32)
    model.fit(x, batch_size=1, verbose=0)
    return bent_evidence(0.3) - float(model.bound(x[:1], 5, 20_000)[0])


@pytest.mark.parametrize(
    "make_flow",
    [
        lambda: RealNVP((16, 16)),
        lambda: IAF((16, 16)),
        BNAF,
    ],
    ids=["realnvp", "iaf", "bnaf"],
)
@pytest.mark.slow
def test_flow_learns_a_posterior_that_is_not_gaussian(make_flow):
    gap = gap_after_training(FlowVAE, flow=make_flow(), num_flows=2)
    assert 0 < gap < 0.4 * gap_after_training(VAE)
