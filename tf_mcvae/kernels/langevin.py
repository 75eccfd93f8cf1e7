"""Langevin transitions, unadjusted and Metropolis-adjusted."""

from typing import Any

import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.annealing import AnnealedPath, Endpoints, LogProbFn
from tf_mcvae.kernels.metropolis import (
    AnnealedKernel,
    MetropolisHastings,
    Proposal,
    select,
    sum_event,
)


class UnadjustedLangevin(AnnealedKernel):
    r"""The unadjusted Langevin algorithm (ULA).

    One step of the Euler scheme of Langevin's diffusion that targets `pi_b`, with step size `e`,

        z' = z + e s_b(z) + sqrt(2 e) xi,        xi ~ N(0, I),    s_b = grad log pi_b.

    The log ratio of the move is `(|xi|^2 - |xi~|^2) / 2` with the noise `xi~` that would bring the
    kernel back from `z'` to `z`. `tfp.mcmc.UncalibratedLangevin` counts its step as `2 e`.

    Args:
        target_log_prob_fn: Callable that maps states to log-densities, or an `AnnealedPath`.
        step_size: `e`, a scalar or `[D]` tensor.
        inverse_temperature: Scalar `b` in [0, 1].
        skip_threshold: A move whose Metropolis-Hastings probability is at most this is undone: the
            state stays and the log ratio is 0. **Biased**: with a threshold above 0 the weights no
            longer average to the evidence. None of this library's evaluations uses it.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    def __init__(
        self,
        target_log_prob_fn: LogProbFn | AnnealedPath,
        step_size: Any,
        inverse_temperature: Any = 1.0,
        skip_threshold: float = 0.0,
    ) -> None:
        super().__init__(target_log_prob_fn, step_size, inverse_temperature)
        self._parameters["skip_threshold"] = skip_threshold
        self.skip_threshold = skip_threshold

    def propose(self, state: tf.Tensor, endpoints: Endpoints, seed: tf.Tensor) -> Proposal:
        """Makes the Euler step."""
        step = tf.cast(self.step_size, state.dtype)
        noise = tf.cast(random.normal(random.shape_of(state), seed), state.dtype)
        score = endpoints.score(self.inverse_temperature)
        new_state = state + step * score + tf.sqrt(2.0 * step) * noise
        new_endpoints = self.path.endpoints(new_state)
        # xi~ = -(xi + drift); the difference of the squares, written so that nothing cancels and
        # a step of 0 gives 0.
        drift = tf.sqrt(0.5 * step) * (score + new_endpoints.score(self.inverse_temperature))
        log_ratio = -sum_event(drift * (noise + 0.5 * drift), endpoints.log_p)
        proposal = Proposal(new_state, new_endpoints, log_ratio)
        return self._skip_unlikely(state, endpoints, proposal) if self.skip_threshold else proposal

    def _skip_unlikely(
        self, state: tf.Tensor, endpoints: Endpoints, proposal: Proposal
    ) -> Proposal:
        """Undoes the moves that Metropolis-Hastings would hardly ever accept."""
        accept_prob = tf.exp(tf.minimum(self.log_accept_ratio(endpoints, proposal), 0.0))
        staying = Proposal(state, endpoints, tf.zeros_like(proposal.log_ratio))
        return select(accept_prob > self.skip_threshold, proposal, staying)


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
        inner = dict(self.inner_kernel.parameters)
        del inner["skip_threshold"]
        return {**inner, "acceptance": self.acceptance}
