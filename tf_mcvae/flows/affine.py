"""Flows that scale and shift: RealNVP and IAF, on TFP's bijectors."""

import itertools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tf_mcvae.flows.base import NetworkFlow, mask

tfb = tfp.bijectors

# Large enough for any posterior, small enough that no exponential overflows.
_LARGEST_LOG_SCALE = 3.0


class _AffineFlow(NetworkFlow):
    """Base class of RealNVP and IAF: a masked network that returns shifts and log scales.

    Each unit has a degree and depends on the units of the previous layer whose degree is not higher
    (MADE, Germain et al., arXiv 1502.03509). The log scales are `c tanh(s / c)`, c = 3, so each
    scale lies between 0.05 and 20.
    """

    def _degrees(self, latent_dim: int) -> list[np.ndarray[Any, Any]]:
        """Returns the degrees of each layer's units, from the inputs to the shifts and scales."""
        raise NotImplementedError

    def _bijector(self) -> tfp.bijectors.Bijector:
        """Returns the flow as a `tfb.Bijector`."""
        raise NotImplementedError

    def make_weights(self, latent_dim: int) -> None:
        """Creates the network's weights. The last layer's are 0, so the flow is the identity."""
        sizes = [len(degrees) for degrees in self._degrees(latent_dim)]
        self.kernels, self.biases = [], []
        for i, (size, units) in enumerate(itertools.pairwise(sizes)):
            stddev = 0.0 if i == len(sizes) - 2 else math.sqrt(1.0 / size)
            self.kernels.append(self.normal_weight(f"kernel_{i}", (size, units), 0.0, stddev))
            self.biases.append(self.normal_weight(f"bias_{i}", (units,), 0.0, 0.0))

    def _shift_and_log_scale(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs the network on rows `[N, ...]`."""
        degrees = self._degrees(self.latent_dim)
        layers = zip(self.kernels, self.biases, itertools.pairwise(degrees), strict=True)
        for i, (kernel, bias, ends) in enumerate(layers):
            # A smooth activation, because training differentiates the scores of a chain.
            x = tf.tanh(x) if i else x
            x = tf.matmul(x, kernel * mask(*ends, x.dtype)) + bias
        shift, log_scale = tf.split(x, 2, axis=-1)
        return shift, _LARGEST_LOG_SCALE * tf.tanh(log_scale / _LARGEST_LOG_SCALE)

    def forward_rows(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `T(u)`, `[N, D]`, and `log |det T'(u)|`, `[N]`, for `u [N, D]`."""
        # A new bijector for each call: it caches tensors, which must not outlive their graph.
        bijector = self._bijector()
        return bijector.forward(u), bijector.forward_log_det_jacobian(u, event_ndims=1)

    def inverse_rows(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the u with `T(u) = z`, `[N, D]`, for `z [N, D]`."""
        return self._bijector().inverse(z)


@keras.saving.register_keras_serializable("tf_mcvae")
class RealNVP(_AffineFlow):
    """Affine coupling: the first `d = D // 2` dimensions are kept, and scale and shift the others.

        z_{1:d} = u_{1:d},        z_{d+1:D} = u_{d+1:D} exp(a(u_{1:d})) + m(u_{1:d}),
        log |det T'(u)| = sum_i a_i(u_{1:d}).

    One layer transforms D - d of the dimensions, and a `FlowStack` of two or more layers all of
    them. The inverse costs as much as the map.

    Args:
        hidden_units: Widths of the hidden layers of the network that returns m and a.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Raises:
        ValueError: If it is built for D = 1, where there are no two dimensions to couple.

    Example:
        >>> z, log_det = RealNVP(hidden_units=(16,))(tf.ones([3, 7, 5]))
        >>> z.shape, log_det.shape
        (TensorShape([3, 7, 5]), TensorShape([3, 7]))

    Reference:
        Dinh et al., Density Estimation using Real NVP, arXiv 1605.08803.
    """

    def _degrees(self, latent_dim: int) -> list[np.ndarray[Any, Any]]:
        # Equal degrees: each unit depends on the whole previous layer.
        kept = latent_dim // 2
        sizes = [kept, *self.hidden_units, 2 * (latent_dim - kept)]
        return [np.zeros(size, np.int32) for size in sizes]

    def make_weights(self, latent_dim: int) -> None:
        """Creates the network's weights."""
        if latent_dim < 2:
            raise ValueError(
                "RealNVP couples dimensions with each other and needs two or more. For a single "
                f"one, use an IAF or BNAF flow. Received: latent_dim={latent_dim}"
            )
        super().make_weights(latent_dim)

    def _bijector(self) -> tfp.bijectors.Bijector:
        return tfb.RealNVP(
            num_masked=self.latent_dim // 2,
            shift_and_log_scale_fn=lambda x, units: self._shift_and_log_scale(x),
        )


@keras.saving.register_keras_serializable("tf_mcvae")
class IAF(_AffineFlow):
    """Inverse autoregressive flow: earlier dimensions scale and shift each dimension.

        z_i = (u_i - m_i(u_{1:i-1})) exp(-a_i(u_{1:i-1})),
        log |det T'(u)| = -sum_i a_i(u_{1:i-1}).

    One evaluation of a masked network returns all `m_i` and `a_i`. The inverse needs D evaluations.

    Args:
        hidden_units: Widths of the hidden layers of the network that returns m and a.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Reference:
        Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow,
        arXiv 1606.04934.
    """

    def _degrees(self, latent_dim: int) -> list[np.ndarray[Any, Any]]:
        # Input i has degree i, and the outputs of dimension i have degree i - 1.
        highest = max(latent_dim - 1, 1)
        # Hidden degrees are spread evenly, even if there are fewer units than dimensions.
        hidden = [np.arange(units) * highest // units + 1 for units in self.hidden_units]
        outputs = np.tile(np.arange(latent_dim), 2)
        layers = [np.arange(latent_dim) + 1, *hidden, outputs]
        return [degrees.astype(np.int32) for degrees in layers]

    def _bijector(self) -> tfp.bijectors.Bijector:
        return tfb.Invert(tfb.MaskedAutoregressiveFlow(self._shift_and_log_scale))
