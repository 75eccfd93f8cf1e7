"""L-MCVAE: unadjusted Langevin transitions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae import random
from tf_mcvae.kernels import Drift, Place, UnadjustedLangevin, score_drift
from tf_mcvae.layers.composite import finish_build, is_restored
from tf_mcvae.layers.schedules import Schedule
from tf_mcvae.layers.step_size import StepSize
from tf_mcvae.layers.transition_networks import LearnedDrift, LearnedReverse
from tf_mcvae.models.annealed import AnnealedVAE, ScheduleName, Transition
from tf_mcvae.models.base import LikelihoodLike
from tf_mcvae.models.batch import Batch
from tf_mcvae.models.changes import Check
from tf_mcvae.models.estimate import Estimate, Gradient
from tf_mcvae.models.penalties import refusing_losses


class Features(NamedTuple):
    """Features of the examples for learned drifts and reverse kernels.

    Attributes:
        x: `[B, ...]`.
        loc: The encoder's location, `[B, D]`.
        log_scale: The encoder's log scale, `[B, D]`.
    """

    x: tf.Tensor
    loc: tf.Tensor
    log_scale: tf.Tensor


def check_skip_threshold(name: str, value: Any) -> None:
    """Raises unless `value` is a probability below 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(
            f"`{name}` is a probability, at least 0 and below 1. Received: {name}={value!r}"
        )


@keras.saving.register_keras_serializable("tf_mcvae")
class LMCVAE(AnnealedVAE):
    """Langevin Monte Carlo VAE: sequential importance sampling with unadjusted Langevin.

    With transitions `z_k = z_{k-1} + e_k s_{b_k}(z_{k-1}) + sqrt(2 e_k) xi_k` and the noise `xi~_k`
    that would lead back,

        log w = log p(x, z_K) - log q(z_0|x) + sum_k (|xi_k|^2 - |xi~_k|^2) / 2,

    and the bound is `E[log (1/S sum_s w_s)] <= log p(x)`. Its gradient is exact: it runs through
    all transitions, second derivatives of the networks included.

    Args:
        encoder: Maps `x [B, ...]` to `[B, 2 D]`, location and log variance.
        decoder: Maps `z [B, D]` to the likelihood's parameters; run in inference mode.
        likelihood: `"bernoulli"`, `"gaussian"`, or a `Likelihood` layer.
        num_transitions: K.
        num_samples: S.
        schedule: `"linear"`, `"sigmoidal"`, `"all_learnable"`, or a `Schedule` layer.
        step_size: A fixed step size, or a `StepSize` layer for learned or adapted ones.
        cloned_decoder: Whether the transitions use a separately trained copy of the decoder.
        recompute: Whether the backward pass computes the decoder's activations again rather than
            keep them: less memory at large K, for longer training steps.
        gradient: The estimator of the gradient that the encoder gets through its first draws:
            `"plain"`; `"stl"`, sticking the landing (Roeder et al., arXiv 1703.09194), which omits
            the score of `log q(z_0|x)` and is biased for S > 1; or `"dreg"`, doubly
            reparameterised (Tucker et al., arXiv 1810.04152), unbiased. In chains both had a higher
            variance than `"plain"` where they were measured (docs/studies/gradient_variance.csv).
        skip_threshold: Proposals whose Metropolis-Hastings probability is at most this are undone.
            **Biased**: above 0 the weights no longer average to `p(x)`.
        learned_drift: Whether networks replace the scores as drifts, forwards and backwards; or a
            `LearnedDrift` layer. The loss then adds the drift-matching term
            `sum_k |drift_k - score_{b_k}|^2` to minus the bound, which remains a bound.
        learned_reverse: Whether networks define the kernels that run backwards; or a
            `LearnedReverse` layer.
        seed: Integer from which all random numbers are drawn, but not the networks' initial
            weights, which `keras.utils.set_random_seed` seeds.
        name: Name of the model.
        trainable: Whether the weights are trained.
        dtype: Data type or policy of the computations, as in Keras.

    Example:
        >>> import numpy as np, tf_mcvae
        >>> model = tf_mcvae.LMCVAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ...     num_transitions=3,
        ...     step_size=tf_mcvae.StepSize(0.05, rule="acceptance"),
        ... )
        >>> model.compile("adam")
        >>> history = model.fit(np.zeros([16, 8, 8, 1], "float32"), verbose=0)
        >>> model.log_weights(np.zeros([4, 8, 8, 1], "float32"), seed=1, num_samples=6).shape
        TensorShape([6, 4])

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """

    suits_xla = True
    fixed = AnnealedVAE.fixed | {"learned_drift", "learned_reverse"}
    changeable: ClassVar[Mapping[str, Check]] = {
        **AnnealedVAE.changeable,
        "skip_threshold": check_skip_threshold,
    }

    def __init__(
        self,
        encoder: keras.Layer,
        decoder: keras.Layer,
        *,
        likelihood: LikelihoodLike = "bernoulli",
        num_transitions: int = 5,
        num_samples: int = 1,
        schedule: ScheduleName | Schedule = "linear",
        step_size: float | Sequence[Any] | StepSize = 0.01,
        cloned_decoder: bool = False,
        recompute: bool = False,
        gradient: Gradient = "plain",
        skip_threshold: float = 0.0,
        learned_drift: bool | LearnedDrift = False,
        learned_reverse: bool | LearnedReverse = False,
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
            schedule=schedule,
            step_size=step_size,
            cloned_decoder=cloned_decoder,
            recompute=recompute,
            gradient=gradient,
            seed=seed,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        self.skip_threshold = skip_threshold
        self.drift = _layer_or_none("learned_drift", learned_drift, LearnedDrift, self.dtype_policy)
        self.reverse_kernel = _layer_or_none(
            "learned_reverse", learned_reverse, LearnedReverse, self.dtype_policy
        )
        self.learned_drift = self.drift is not None
        self.learned_reverse = self.reverse_kernel is not None
        if self.reverse_kernel is not None and not np.all(self.step_size.initial > 0):
            raise ValueError(
                "A learned reverse kernel needs step sizes above 0, as the weight has the density "
                f"of the transition. Received: {self.step_size.initial!r}"
            )

    def metric_names(self) -> tuple[str, ...]:
        """Adds the squared distance of a learned drift from the score."""
        return (*super().metric_names(), *(() if self.drift is None else ("drift_error",)))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds networks, schedule, step sizes, drifts and reverse kernels."""
        super().build(input_shape)
        if self.drift is not None and not self.drift.built:
            of_encoder = self.drift.features == "encoder"
            num_features = 2 * self.latent_dim if of_encoder else math.prod(self.event_shape)
            self.drift.build(self.num_transitions, self.latent_dim, num_features)
        if self.reverse_kernel is not None and not self.reverse_kernel.built:
            self.reverse_kernel.build(self.num_transitions, self.latent_dim)
            if not is_restored(self.reverse_kernel):
                steps = np.asarray(self.step_size.values())
                self.reverse_kernel.begin_at(steps.reshape(self.num_transitions, -1))
        finish_build(self)

    def transition_options(self, num_transitions: int | tf.Tensor | None) -> dict[str, Any]:
        """Returns the options for another number of transitions; see the base class."""
        options = super().transition_options(num_transitions)
        if options and not (self.drift is None and self.reverse_kernel is None):
            raise ValueError(
                "Learned drifts and reverse kernels have networks for each of the model's "
                f"{self.num_transitions} transitions, and none for others: leave out "
                f"`num_transitions`. Received: num_transitions={num_transitions}"
            )
        return options

    def make_kernel(self, transition: Transition) -> UnadjustedLangevin:
        """Makes an unadjusted Langevin kernel."""
        loc, scale = transition.posterior.mean(), transition.posterior.stddev()
        return UnadjustedLangevin(
            transition.path,
            transition.step_size,
            transition.inverse_temperature,
            forward_drift=score_drift if self.drift is None else self._learned_drift,
            backward_drift=None if self.reverse_kernel is None else self._learned_reverse,
            index=transition.index,
            features=Features(transition.batch.x, loc, tf.math.log(scale)),
            skip_threshold=self.skip_threshold,
        )

    def _learned_drift(self, place: Place) -> Drift:
        x, loc, log_scale = place.features
        features = tf.concat([loc, log_scale], -1) if self.drift.features == "encoder" else x
        with refusing_losses("learned_drift"):
            drift = self.drift(place.state, features, place.index)
        return Drift(tf.cast(drift, place.state.dtype))

    def _learned_reverse(self, place: Place) -> Drift:
        with refusing_losses("learned_reverse"):
            outputs = self.reverse_kernel(place.state, place.features.loc, place.index)
        shift, log_variance = (tf.cast(output, place.state.dtype) for output in outputs)
        return Drift(shift / place.step_size, log_variance)

    def estimate(self, batch: Batch, seed: random.Seed, training: bool) -> Estimate:
        """Adds the drift-matching loss of a learned drift."""
        estimate = super().estimate(batch, seed, training)
        if self.drift is None:
            return estimate
        error = tf.reduce_sum(estimate.adaptation.drift_error, axis=0)
        error = tf.reduce_mean(error, axis=0)
        metrics = {**estimate.metrics, "drift_error": tf.reduce_mean(error)}
        return estimate._replace(loss=error + estimate.loss, metrics=metrics)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        serialise = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "skip_threshold": self.skip_threshold,
            "learned_drift": False if self.drift is None else serialise(self.drift),
            "learned_reverse": False
            if self.reverse_kernel is None
            else serialise(self.reverse_kernel),
        }


def _layer_or_none(
    name: str, given: bool | keras.Layer, layer: type[keras.Layer], dtype: keras.DTypePolicy
) -> Any:
    """Returns the given layer, a new one for True, or None for False."""
    if isinstance(given, layer):
        return given
    if not isinstance(given, bool):
        raise TypeError(
            f"`{name}` must be True, False or a {layer.__name__} layer. Received: {name}={given!r}"
        )
    return layer(dtype=dtype) if given else None
