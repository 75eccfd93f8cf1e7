"""Langevin transitions, unadjusted and Metropolis-adjusted."""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels.metropolis import (
    AnnealedKernel,
    MetropolisHastings,
    Proposal,
    TransitionResults,
    select,
    sum_event,
)
from tf_mcvae.kernels.path import AnnealedPath, Endpoints, LogProbFn


class UnadjustedLangevin(AnnealedKernel):
    r"""The unadjusted Langevin algorithm (ULA).

    One step of the Euler scheme of Langevin's diffusion that targets `pi_b`, with step size `e`,

        z' = z + e d(z) + sqrt(2 e) xi,        xi ~ N(0, I),        d = s_b = grad log pi_b.

    The log ratio of the move is `(|xi|^2 - |xi~|^2) / 2` with the noise `xi~` that would bring the
    kernel back from `z'` to `z`. `tfp.mcmc.UncalibratedLangevin` counts its step as `2 e`.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor.
        inverse_temperature: Scalar `b` in [0, 1].
        skip_threshold: A move whose Metropolis-Hastings probability is at most this is undone: the
            state stays and the log ratio is 0. **Biased**: with a threshold above 0 the weights no
            longer average to the evidence. None of this library's evaluations uses it.
        drift_fn: Maps states to the drift `d` to take in the place of the score, both ways.
        reverse_fn: Maps `z'` to the distribution `r(z|z')` that is taken for the kernel that leads
            backwards; the log ratio is then `log r(z|z') - log N(z'; z + e d(z), 2 e I)`.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: Any,
        inverse_temperature: Any = 1.0,
        skip_threshold: float = 0.0,
        drift_fn: Callable[[tf.Tensor], tf.Tensor] | None = None,
        reverse_fn: Callable[[tf.Tensor], Any] | None = None,
    ) -> None:
        super().__init__(target_log_prob_fn, step_size, inverse_temperature)
        self._parameters.update(
            skip_threshold=skip_threshold, drift_fn=drift_fn, reverse_fn=reverse_fn
        )
        self.skip_threshold = skip_threshold
        self.drift_fn = drift_fn
        self.reverse_fn = reverse_fn

    def propose(self, state: tf.Tensor, previous: TransitionResults, seed: tf.Tensor) -> Proposal:
        """Makes the Euler step."""
        endpoints = previous.endpoints
        step = tf.cast(self.step_size, state.dtype)
        noise = tf.cast(random.normal(random.shape_of(state), seed), state.dtype)
        drift = self._drift(state, endpoints)
        new_state = state + step * drift + tf.sqrt(2.0 * step) * noise
        new_endpoints = self.path.endpoints(new_state)
        # xi~ = -(xi + way); the difference of the squares, written so that nothing cancels and a
        # step of 0 gives 0.
        way = tf.sqrt(0.5 * step) * (drift + self._drift(new_state, new_endpoints))
        log_ratio = -sum_event(way * (noise + 0.5 * way), endpoints.log_p)
        error = self._drift_error(drift, endpoints)
        proposal = Proposal(new_state, new_endpoints, log_ratio, error)
        if self.reverse_fn is not None:
            log_forward = -0.5 * (tf.square(noise) + tf.math.log(4.0 * math.pi * step))
            log_backward = self.reverse_fn(new_state).log_prob(state)
            learned = log_backward - sum_event(log_forward, endpoints.log_p)
            proposal = proposal._replace(log_ratio=learned, own_log_ratio=log_ratio)
        return self._skip_unlikely(state, endpoints, proposal) if self.skip_threshold else proposal

    def _drift(self, state: tf.Tensor, endpoints: Endpoints) -> tf.Tensor:
        if self.drift_fn is not None:
            return self.drift_fn(state)
        return endpoints.score(self.inverse_temperature)

    def _drift_error(self, drift: tf.Tensor, endpoints: Endpoints) -> tf.Tensor | None:
        if self.drift_fn is None:
            return None
        distance = tf.square(drift - endpoints.score(self.inverse_temperature))
        return sum_event(distance, endpoints.log_p)

    def _skip_unlikely(
        self, state: tf.Tensor, endpoints: Endpoints, proposal: Proposal
    ) -> Proposal:
        """Undoes the moves that Metropolis-Hastings would hardly ever accept."""
        accept_prob = tf.exp(tf.minimum(self.log_accept_ratio(endpoints, proposal), 0.0))
        staying = (state, endpoints, tf.zeros_like(proposal.log_ratio))
        state, endpoints, log_ratio = select(
            accept_prob > self.skip_threshold, tuple(proposal[:3]), staying
        )
        return proposal._replace(state=state, endpoints=endpoints, log_ratio=log_ratio)


class MetropolisAdjustedLangevin(MetropolisHastings):
    """The Metropolis-adjusted Langevin algorithm (MALA): `UnadjustedLangevin`, calibrated.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor; `tfp.mcmc` counts it as `2 e`.
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
        step_size: Any,
        inverse_temperature: Any = 1.0,
        acceptance: str = "metropolis",
    ) -> None:
        inner = UnadjustedLangevin(target_log_prob_fn, step_size, inverse_temperature)
        super().__init__(inner, acceptance)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, which `copy` needs."""
        names = ("target_log_prob_fn", "step_size", "inverse_temperature")
        inner = {name: self.inner_kernel.parameters[name] for name in names}
        return {**inner, "acceptance": self.acceptance}
