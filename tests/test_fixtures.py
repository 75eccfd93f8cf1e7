"""The library reproduces recorded numbers of the published implementation, with its draws.

States, log weights and bounds agree to 1e-4 relative, gradients to 1e-3 of the norm of each tensor,
in eager, graph and XLA execution. `--recorded DIR` reproduces further recorded files; those of the
convolutional networks, which are large, are expected next to the repository (`--runslow`).
"""

from pathlib import Path

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from modes import MODES
from reference_weights import group, reference_arrays
from replay import ROOT_SEED, Fixture, replay_draws

from tf_mcvae.integrations.reference import transition_network_weights
from tf_mcvae.kernels import HamiltonianMonteCarlo
from tf_mcvae.models.batch import Batch
from tf_mcvae.objectives.annealed import annealed_importance_sampling

HERE = Path(__file__).parent
PUBLISHED_CONV = HERE.parent.parent / "shared/reference/conv"


def pytest_generate_tests(metafunc):
    if "path" not in metafunc.fixturenames:
        return
    folders = {HERE / "fixtures": (), PUBLISHED_CONV: (pytest.mark.slow,)}
    folders |= {Path(folder): () for folder in metafunc.config.getoption("--recorded")}
    marks = {
        path: marks for folder, marks in folders.items() for path in sorted(folder.glob("*.npz"))
    }
    metafunc.parametrize(
        "path",
        [
            pytest.param(path, id=path.stem, marks=marks[path])
            for path in of_kind(metafunc.function.__name__, marks)
        ],
    )


# The tests, and how the names of the files begin that they reproduce.
KINDS = {"test_model": ("vae", "iwae", "lmcvae", "amcvae"), "test_ais": ("nll",)}


def of_kind(test, paths):
    """The files of a test, after a check that each file has a test."""
    known = tuple(kind for kinds in KINDS.values() for kind in kinds)
    unknown = [str(path) for path in paths if not path.stem.startswith(known)]
    if unknown:
        raise ValueError(f"Names of recorded files must begin with one of {known}: {unknown}")
    return [path for path in paths if path.stem.startswith(KINDS[test])]


def test_no_recorded_file_is_skipped_in_silence():
    with pytest.raises(ValueError, match="other_k3"):
        of_kind("test_model", [Path("vae_n1.npz"), Path("other_k3.npz")])


def close(actual, expected, tolerance=1e-4):
    """Equal to `tolerance` of the largest value: the relative error of the array as a whole."""
    expected = np.asarray(expected)
    scale = np.max(np.abs(expected), initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def trace_everything(state, results):
    return state, results, results.diagnostics["score"]


def evaluate(model, x):
    """Returns the estimate, the states of its transitions if there are any, and the gradients."""
    variables = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        estimate = model.estimate(Batch(x), ROOT_SEED, training=True)
        loss = tf.reduce_mean(estimate.loss)
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
    if not hasattr(model, "run_transitions"):
        return estimate, None, gradients
    run = model.run_transitions(Batch(x), ROOT_SEED, model.num_samples, trace_fn=trace_everything)
    return estimate, run, gradients


# One file of each kind is compiled, with `--runslow` all. Only convolutional networks are fused.
COMPILED = {
    "graph": ("iwae", "amcvae_mh_s"),
    "xla": ("vae_g", "lmcvae_sigmoidal_g"),
    "fused": (),
    "eager": "",
}


@pytest.mark.parametrize("mode", MODES)
def test_model(path, mode, monkeypatch, request):
    is_chosen = path.parent != HERE / "fixtures" or path.stem.startswith(COMPILED[mode])
    if not (is_chosen or request.config.getoption("--runslow")):
        pytest.skip("needs --runslow")
    fixture = Fixture(path)
    model = fixture.model()
    replay_draws(monkeypatch, fixture)
    estimate, run, gradients = MODES[mode](lambda x: evaluate(model, x))(tf.constant(fixture.x))
    check_loss(fixture, model, estimate)
    if run is not None:
        check_transitions(fixture, model, run)
        model.adapt([estimate.adaptation])
        steps = model.step_size.values()
        close(steps, fixture["out/step_sizes_after"], 1e-5)
    check_gradients(fixture, model, gradients)


def check_loss(fixture, model, estimate):
    """Checks the recorded loss, if it is a surrogate with the surrogate's formula."""
    loss, bound = float(np.mean(estimate.loss)), float(np.mean(estimate.bound))
    loss += np.sum(missing_constant(fixture))
    assert np.isfinite(bound)
    if fixture.config["cls"] in ("IWAE", "LMCVAE") and fixture.num_samples > 1:
        log_weights = model.log_weights(fixture.x, ROOT_SEED).numpy().astype(np.float64)
        total = scipy.special.logsumexp(log_weights, 0)
        bound64 = np.mean(total) - np.log(fixture.num_samples)
        weights = np.exp(log_weights - total)
        surrogate = -np.mean(np.sum(weights * log_weights, 0))
        if fixture.config["cls"] == "IWAE":
            surrogate += np.log(fixture.num_samples)
        close(bound, bound64)
        close(loss, -bound)
        close(surrogate, fixture["out/loss"])
    else:
        close(loss, fixture["out/loss"])


def missing_constant(fixture):
    """The constant that is missing in recorded log ratios of learned reverse kernels, `[K]`.

    The recorded density is that of the noise. That of the transition has the Jacobian of scaling
    the noise in addition, `(D/2) log(2 e)`.
    """
    if not fixture.config.get("use_reverse_kernel"):
        return np.zeros(1)
    before = [fixture[f"before/transitions.{k}.log_stepsize"] for k in range(fixture.config["K"])]
    return 0.5 * fixture.config["hidden_dim"] * np.log(2.0 * np.exp(before))


def check_probabilities(log_actual, log_expected, log_p, num_transitions=1):
    """Compares probabilities: their logarithms near 0 are float32 differences of large numbers.

    The logarithm of an acceptance is a difference of two log-densities, each of which may be a
    float32 unit off, 2.4e-4 for |log p| = 3,750. The tolerance is 1e-4, or as many units if they
    are more; the logarithm of a product over transitions adds up theirs.
    """
    unit = np.spacing(np.max(np.abs(log_p)).astype(np.float32))
    tolerance = max(1e-4, 2 * num_transitions * unit)
    close(np.exp(log_actual), np.exp(log_expected), tolerance)


def check_transitions(fixture, model, run):
    states, results, scores = run.trace
    learned = fixture.config.get("use_score_matching")
    close(model.schedule.inverse_temperatures(), fixture["out/betas"])
    close(run.initial_state, fixture.unfold("out/z0"))
    close(states, fixture.unfold("trace/make_transition.0", 1))
    close(run.state, fixture.unfold("out/z_K"))
    constant = missing_constant(fixture)
    close(run.log_weights - np.sum(constant), fixture.unfold("out/sum_log_weights"))
    assert np.array_equal(results.is_accepted, fixture.unfold("out/acceptance", 1))
    if fixture.config["cls"] == "LMCVAE":
        ratios = results.log_ratio - constant[:, np.newaxis, np.newaxis]
        close(ratios, fixture.unfold("trace/make_transition.1", 1))
        error = results.diagnostics.get("drift_error", tf.zeros_like(results.log_ratio))
        error = tf.reduce_sum(error, 0)
        recorded = fixture["trace/make_transition.3"]
        close(error, np.sum(recorded, (0, -1), keepdims=True)[..., 0] if learned else 0 * error)
        if not learned:  # Otherwise the drift was recorded instead.
            close(scores, fixture.unfold("trace/make_transition.4", 1))
    else:
        log_p, choices = results.endpoints.log_p, results.log_choice_prob
        check_probabilities(choices, fixture.unfold("trace/make_transition.2", 1), log_p)
        close(scores, fixture.unfold("trace/make_transition.3", 1))
        total = tf.reduce_sum(choices, 0)
        check_probabilities(total, fixture.unfold("out/sum_log_alphas"), log_p, len(choices))


def check_gradients(fixture, model, gradients):
    by_variable = {
        variable.path: gradient.numpy()
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
    }

    def check(variables, expected, tolerance=1e-3):
        for variable, value in zip(variables, expected, strict=True):
            error = np.linalg.norm(by_variable.pop(variable.path) - value)
            assert error <= tolerance * np.linalg.norm(value), variable.path

    arrays, seen = fixture.arrays, model.trainable_variables
    grads = {n.removeprefix("grad/"): v for n, v in arrays.items() if n.startswith("grad/")}
    networks = {"encoder_net": model.encoder, "decoder_net": model.decoder}
    if fixture.config.get("use_cloned_decoder"):
        networks["cloned_decoder"] = model.transition_decoder
    for prefix, network in networks.items():
        check(network.trainable_variables, reference_arrays(arrays, prefix, "grad"))
    if "transitions.0.log_stepsize" in grads:
        steps = [grads[f"transitions.{k}.log_stepsize"] for k in range(fixture.config["K"])]
        # The constant that is missing in the recording depends on the step size.
        reverse = bool(fixture.config.get("use_reverse_kernel"))
        lacking = 0.5 * fixture.config["hidden_dim"] * reverse
        check([model.step_size.log_step_size], [np.array(steps) - lacking])
    if "tempering_beta_logits" in grads:
        check([model.schedule.logits], [grads["tempering_beta_logits"]])
    if "tempering_logalpha" in grads:
        # If a schedule is nearly linear, the recorded derivatives d b_k / d log_steepness are
        # float32 differences of nearly equal sigmoids, 1 to 3 % off (1.277e-4 was recorded where
        # float64 derivatives of the temperatures give 1.303e-4, and the library 1.303e-4).
        cancels = fixture["param/tempering_logalpha"] < -1.0
        recorded = [grads["tempering_logalpha"]]
        check([model.schedule.log_steepness], recorded, 3e-2 if cancels else 1e-3)
    for layer, pattern, shape in (
        (getattr(model, "drift", None), "transitions.{}.add_nn", fixture.x.shape[1:]),
        (getattr(model, "reverse_kernel", None), "reverse_kernels.{}", None),
    ):
        if layer is not None:
            recorded = transition_network_weights(group(arrays, "grad"), pattern, shape)
            check([*layer.kernels, *layer.biases], recorded)
    assert not by_variable, f"no recorded gradient for {sorted(by_variable)} of {len(seen)}"


@pytest.mark.parametrize("mode", MODES)
def test_ais(path, mode, monkeypatch):
    """The published quick estimate: 5 temperatures, 10 chains, HMC with 3 leapfrogs of 0.05."""
    fixture = Fixture(path)
    model = fixture.model()
    replay_draws(monkeypatch, fixture)

    def run(x):
        posterior = model.posterior(Batch(x))
        annealed = model.path(Batch(x), posterior)
        return annealed_importance_sampling(
            annealed,
            model.draw_posterior(posterior, 10, ROOT_SEED),
            lambda k, _: HamiltonianMonteCarlo(
                annealed, 0.05, 3, 0.25 * tf.cast(k + 1, tf.float32)
            ),
            3,
            ROOT_SEED,
            trace_fn=lambda state, results: (state, results),
        )

    result = MODES[mode](run)(tf.constant(fixture.x))
    states, results = result.trace
    close(states, fixture.unfold("trace/make_transition.0", 1))
    assert np.array_equal(results.is_accepted, fixture.unfold("trace/make_transition.2", 1))
    recorded = fixture.unfold("trace/make_transition.3", 1)
    check_probabilities(results.log_choice_prob, recorded, results.endpoints.log_p)
    nll = -np.mean(scipy.special.logsumexp(result.log_weights, 0) - np.log(10))
    close(nll, fixture["out/nll"])
