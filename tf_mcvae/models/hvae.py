"""HVAE: the Hamiltonian variational auto-encoder."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.kernels import UncalibratedHamiltonian
from tf_mcvae.layers.composite import finish_build
from tf_mcvae.layers.momentum import Tempering
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.models.annealed import AnnealedVAE, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.estimate import Gradient
from tf_mcvae.models.generative import LogProbFn


@keras.saving.register_keras_serializable("tf_mcvae")
class HVAE(AnnealedVAE):
    """Hamiltonian VAE: deterministic leapfrogs under `p(x, z)`, with a momentum that cools.

    From `z_0 ~ q(z|x)` and `v_0 ~ N(0, T_0 I)`, K leapfrogs under `p(x, .)` are each followed by
    `v <- sqrt(T_k / T_{k-1}) v`, with temperatures that fall to `T_K = 1`, and

        log w = log p(x, z_K) + log N(v_K; 0, I) - log q(z_0|x) - log N(v_0; 0, T_0 I)
                + D/2 log(T_K / T_0).

    The bound is `E[log (1/S sum_s w_s)] <= log p(x)`. It costs K + 1 evaluations of the decoder and
    its gradient. In units of `sqrt(T)`, a leapfrog of size `e` at temperature `T` is one of size
    `e sqrt(T)` under `p(x, .)^(1/T)` whose momentum is never refreshed: the kernel of `UHAVAE`.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        step_size: The leapfrogs' step size: fixed, or a `StepSize` layer for learned ones. None
            learns one of each transition and dimension, within 0 and 0.5 as published.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: The estimator of the gradient of the first draws: `"plain"`, `"stl"` or `"dreg"`;
            see `LMCVAE`.
        tempering: `"quadratic"`, `"free"` or `"none"`; or a `Tempering` layer.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Reference:
        Caterini et al., Hamiltonian Variational Auto-Encoder, arXiv 1805.11328.
    """

    suits_xla = True
    has_acceptance = False
    fixed = AnnealedVAE.fixed | {"tempering"}

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        num_transitions: int = 5,
        num_samples: int = 1,
        step_size: float | Sequence[Any] | StepSize | None = None,
        cloned_decoder: bool = False,
        recompute: bool = False,
        gradient: Gradient = "plain",
        tempering: str | Tempering = "quadratic",
        seed: int = 0,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            likelihood=likelihood,
            num_transitions=num_transitions,
            num_samples=num_samples,
            step_size=_published_steps() if step_size is None else step_size,
            cloned_decoder=cloned_decoder,
            recompute=recompute,
            gradient=gradient,
            seed=seed,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        if not isinstance(tempering, Tempering):
            tempering = Tempering(tempering, dtype=self.density_dtype)  # type: ignore[arg-type]
        self.tempering = tempering

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds networks, step sizes and temperatures."""
        super().build(input_shape)
        if not self.tempering.built:
            self.tempering.build(self.num_transitions)
        finish_build(self)

    def transition_options(self, num_transitions: int | tf.Tensor | None) -> dict[str, Any]:
        """Returns the options for another number of transitions, which there are none of."""
        options = super().transition_options(num_transitions)
        if options:
            raise ValueError(
                f"An HVAE has temperatures for its {self.num_transitions} transitions, and none "
                "for others: leave out `num_transitions`. "
                f"Received: num_transitions={num_transitions}"
            )
        return options

    def base_log_prob_fn(self, posterior: tfp.distributions.Distribution) -> LogProbFn:
        """Returns a constant: the leapfrogs follow `p(x, z)` alone."""
        return lambda state: tf.zeros_like(state[..., 0])

    def initial_log_prob_fn(
        self, posterior: tfp.distributions.Distribution, is_constant: bool
    ) -> LogProbFn:
        """Returns `log q(z_0|x)`, which the path does not have."""
        return super().initial_log_prob_fn(posterior, is_constant) or posterior.log_prob

    def make_kernel(self, transition: Transition) -> UncalibratedHamiltonian:
        """Makes a leapfrog whose momentum is in units of the square root of its temperature."""
        temperature = tf.cast(self.tempering.temperatures()[transition.index], self.density_dtype)
        return UncalibratedHamiltonian(
            transition.path,
            tf.sqrt(temperature) * transition.step_size,
            1,
            1.0 / temperature,
            momentum_persistence=1.0,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        del config["schedule"]
        return {**config, "tempering": keras.saving.serialize_keras_object(self.tempering)}


def _published_steps() -> StepSize:
    return StepSize(0.1, "learned", per_dimension=True, limits=(0.0, 0.5))
