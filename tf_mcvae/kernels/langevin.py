"""Langevin transitions, unadjusted and Metropolis-adjusted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels.metropolis import MetropolisHastings
from tf_mcvae.kernels.path import AnnealedPath, Endpoints, GuardedPath, LogProbFn
from tf_mcvae.kernels.transition import (
    Acceptance,
    AnnealedKernel,
    Proposal,
    TransitionResults,
    select,
    sum_event,
)


class Place(NamedTuple):
    """The arguments of a drift: a state, and the transition that starts or ends there.

    Attributes:
        state: `[S, B, D]`.
        endpoints: Log-densities and scores at the state.
        inverse_temperature: Scalar `b`.
        step_size: `e`, a scalar or `[D]`.
        index: Number k = 0, ..., K - 1 of the transition, a scalar.
        features: Features of the examples, a structure of tensors `[B, ...]`, or None.
    """

    state: tf.Tensor
    endpoints: Endpoints
    inverse_temperature: tf.Tensor | float
    step_size: tf.Tensor
    index: tf.Tensor
    features: Any

    @property
    def score(self) -> tf.Tensor:
        """Gradient of `log pi_b`, `[S, B, D]`."""
        return self.endpoints.score(self.inverse_temperature)


class Drift(NamedTuple):
    """A Gaussian step `N(z + e d, V)` of size `e`.

    Attributes:
        value: `d`, `[S, B, D]`.
        log_variance: `log V`, `[S, B, D]`; None for that of Langevin, `log 2e`.
    """

    value: tf.Tensor
    log_variance: tf.Tensor | None = None


DriftFn = Callable[[Place], Drift]


def score_drift(place: Place) -> Drift:
    """Returns the drift of Langevin's diffusion, the score `s_b = grad log pi_b`."""
    return Drift(place.score)


class UnadjustedLangevin(AnnealedKernel):
    r"""The unadjusted Langevin algorithm (ULA).

    One step of the Euler scheme of Langevin's diffusion that targets `pi_b`, with step size `e`,

        z' = z + e d(z) + sqrt(2 e) xi,        xi ~ N(0, I),        d = s_b = grad log pi_b.

    The log ratio compares the density of the step from `z'` back to `z`, with the backward drift,
    to that of this step. With equal variances it is `(|xi|^2 - |xi~|^2) / 2`, where `xi~` is the
    noise that would lead back. The step size of `tfp.mcmc.UncalibratedLangevin` is `2 e`.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor.
        inverse_temperature: Scalar `b` in [0, 1].
        forward_drift: The drift `d`, a function of `Place`; by default the score. With another one,
            the diagnostic `"drift_error"` is `|d - s_b|^2`, `[S, B]`.
        backward_drift: The drift of the step that leads back; None uses the forward drift.
        index: Number of the transition, for the drifts.
        features: Features of the examples for the drifts, a structure of tensors `[B, ...]`.
        skip_threshold: A proposal whose Metropolis-Hastings probability is at most this is undone:
            the state stays and the log ratio is 0. **Biased**: with a threshold above 0 the weights
            no longer average to the evidence.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: tf.Tensor | float,
        inverse_temperature: tf.Tensor | float = 1.0,
        *,
        forward_drift: DriftFn = score_drift,
        backward_drift: DriftFn | None = None,
        index: tf.Tensor | int = 0,
        features: Any = None,
        skip_threshold: float = 0.0,
    ) -> None:
        super().__init__(target_log_prob_fn, step_size, inverse_temperature)
        own = {
            "forward_drift": forward_drift,
            "backward_drift": backward_drift,
            "index": index,
            "features": features,
            "skip_threshold": skip_threshold,
        }
        self._parameters.update(own)
        self.forward_drift = forward_drift
        self.backward_drift = backward_drift
        self.index, self.features = index, features
        self.skip_threshold = skip_threshold

    def propose(self, state: tf.Tensor, previous: TransitionResults, seed: random.Seed) -> Proposal:
        """Makes the Euler step."""
        origin = self._place(state, previous.endpoints)
        noise = tf.cast(random.normal(random.shape_of(state), seed), state.dtype)
        drift, step = self.forward_drift(origin), origin.step_size
        new_state = state + step * drift.value + _scale(drift, step) * noise
        path = GuardedPath(self.path, state) if self.skip_threshold else self.path
        end = self._place(path.nearest(new_state), path.endpoints(new_state))
        own = self._log_ratio(origin, end, drift, self.forward_drift(end), noise)
        proposal = Proposal(
            new_state, end.endpoints, own, diagnostics=self._drift_error(origin, drift)
        )
        if self.backward_drift is not None:
            log_ratio = self._log_ratio(origin, end, drift, self.backward_drift(end), noise)
            proposal = proposal._replace(log_ratio=log_ratio, own_log_ratio=own)
        return self._skip_unlikely(origin, proposal) if self.skip_threshold else proposal

    def log_ratio_between(
        self, state: tf.Tensor, origin: Endpoints, new_state: tf.Tensor, end: Endpoints
    ) -> tf.Tensor:
        """Returns the log ratio of the transition between two given states, `[S, B]`.

        Args:
            state: `[S, B, D]`.
            origin: Log-densities and scores there.
            new_state: `[S, B, D]`.
            end: The same there.
        """
        first, last = self._place(state, origin), self._place(new_state, end)
        there = self.forward_drift(first)
        back = (self.backward_drift or self.forward_drift)(last)
        way = new_state - state - first.step_size * there.value
        return self._log_ratio(first, last, there, back, way / _scale(there, first.step_size))

    def initial_diagnostics(self, endpoints: Endpoints) -> dict[str, tf.Tensor]:
        """Returns a drift error of 0 if the drift is not the score."""
        if self.forward_drift is score_drift:
            return {}
        return {"drift_error": tf.zeros_like(endpoints.log_p)}

    def _place(self, state: tf.Tensor, endpoints: Endpoints) -> Place:
        step = tf.cast(self.step_size, state.dtype)
        return Place(state, endpoints, self.inverse_temperature, step, self.index, self.features)

    def _log_ratio(
        self, origin: Place, end: Place, there: Drift, back: Drift, noise: tf.Tensor
    ) -> tf.Tensor:
        """Returns `log N(z; z' + e d~, V~) - log N(z'; z + e d, V)`, `[S, B]`."""
        step, like = origin.step_size, end.endpoints.log_p
        if there.log_variance is None and back.log_variance is None:
            # With xi~ = -(xi + way), this form of the difference of squares does not cancel, and a
            # step of 0 gives 0.
            way = tf.sqrt(0.5 * step) * (there.value + back.value)
            return -sum_event(way * (noise + 0.5 * way), like)
        back_scale = _scale(back, step)
        back_noise = (origin.state - end.state - step * back.value) / back_scale
        log_scales = tf.math.log(_scale(there, step)) - tf.math.log(back_scale)
        return sum_event(0.5 * (tf.square(noise) - tf.square(back_noise)) + log_scales, like)

    def _drift_error(self, origin: Place, drift: Drift) -> dict[str, tf.Tensor]:
        if self.forward_drift is score_drift:
            return {}
        distance = tf.square(drift.value - origin.score)
        return {"drift_error": sum_event(distance, origin.endpoints.log_p)}

    def _skip_unlikely(self, origin: Place, proposal: Proposal) -> Proposal:
        """Undoes proposals whose acceptance probability is at most the threshold."""
        log_accept_ratio = self.log_accept_ratio(origin.endpoints, proposal)
        state, endpoints, log_ratio = select(
            tf.exp(tf.minimum(log_accept_ratio, 0.0)) > self.skip_threshold,
            (proposal.state, proposal.endpoints, proposal.log_ratio),
            (origin.state, origin.endpoints, tf.zeros_like(proposal.log_ratio)),
        )
        return proposal._replace(state=state, endpoints=endpoints, log_ratio=log_ratio)


def _scale(drift: Drift, step: tf.Tensor) -> tf.Tensor:
    """Returns the standard deviation of a step."""
    return tf.sqrt(2.0 * step) if drift.log_variance is None else tf.exp(0.5 * drift.log_variance)


class MetropolisAdjustedLangevin(MetropolisHastings):
    """The Metropolis-adjusted Langevin algorithm (MALA): `UnadjustedLangevin`, calibrated.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor; the step size of `tfp.mcmc` is `2 e`.
        inverse_temperature: Scalar `b` in [0, 1].
        acceptance: `"metropolis"` or `"barker"`.

    Example:
        >>> import tensorflow as tf, tensorflow_probability as tfp, tf_mcvae
        >>> kernel = tf_mcvae.kernels.MetropolisAdjustedLangevin(
        ...     tfp.distributions.Normal(0.0, 1.0).log_prob, step_size=0.1
        ... )
        >>> draws = tfp.mcmc.sample_chain(
        ...     200, current_state=tf.zeros([8]), kernel=kernel, trace_fn=None, seed=1
        ... )
        >>> draws.shape
        TensorShape([200, 8])

    Reference:
        Roberts and Tweedie (1996), Bernoulli 2(4).
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: tf.Tensor | float,
        inverse_temperature: tf.Tensor | float = 1.0,
        acceptance: Acceptance = "metropolis",
    ) -> None:
        inner = UnadjustedLangevin(target_log_prob_fn, step_size, inverse_temperature)
        super().__init__(inner, acceptance)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, which `copy` needs."""
        names = ("target_log_prob_fn", "step_size", "inverse_temperature")
        inner = {name: self.inner_kernel.parameters[name] for name in names}
        return {**inner, "acceptance": self.acceptance}
