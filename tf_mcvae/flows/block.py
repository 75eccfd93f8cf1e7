"""Block neural autoregressive flow."""

import itertools
import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.flows.base import NetworkFlow, mask

# Initial values: the gate's logit, and the range in which a block is nearly linear.
_FIRST_GATE, _FIRST_RANGE = -2.0, 4.0


@keras.saving.register_keras_serializable("tf_mcvae")
class BNAF(NetworkFlow):
    """Block neural autoregressive flow: a network that is monotone in each dimension.

    Each dimension has a block of units in each layer. Weights between two blocks of dimension i are
    exponentials, so that `f_i` increases with `u_i`. Weights from blocks of earlier dimensions are
    unconstrained, and the activation is tanh. Since f is bounded, u itself is added with a learned
    gate `0 < g < 1`, so that the map reaches the whole latent space:
        z_i = g f_i(u_{1:i}) + (1 - g) u_i,
        log |det T'(u)| = sum_i log(g df_i/du_i + 1 - g).

    The derivative is the product of the layers' diagonal blocks, computed in logarithms. There is
    no inverse in closed form. Unlike in the article, the weights are not normalised.

    Args:
        hidden_units: Number of units of each dimension in each hidden layer.
        name, trainable, dtype: As in `keras.layers.Layer`.

    Reference:
        De Cao et al., Block Neural Autoregressive Flow, arXiv 1904.04676.
    """

    def __init__(
        self,
        hidden_units: Sequence[int] = (8,),
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
    ) -> None:
        super().__init__(hidden_units, name=name, trainable=trainable, dtype=dtype)

    def make_weights(self, latent_dim: int) -> None:
        """Creates the weights, initialised such that `f_i` is close to `u_i` for small `u`."""
        sizes = (1, *self.hidden_units, 1)
        # The factor of each layer from block to block. Their product is 1.
        scales = np.ones(len(sizes) - 1)
        scales[0] /= _FIRST_RANGE
        scales[-1] *= _FIRST_RANGE
        self.log_diagonals, self.kernels, self.biases = [], [], []
        for i, (size, units) in enumerate(itertools.pairwise(sizes)):
            block, mean = (latent_dim, size, units), math.log(scales[i] / size)
            shape, stddev = (latent_dim * size, latent_dim * units), 0.1 / math.sqrt(latent_dim)
            self.log_diagonals.append(self.normal_weight(f"log_diagonal_{i}", block, mean, 0.1))
            self.kernels.append(self.normal_weight(f"kernel_{i}", shape, 0.0, stddev / size))
            self.biases.append(self.normal_weight(f"bias_{i}", shape[1:], 0.0, 0.1))
        self.gate = self.normal_weight("gate", (), _FIRST_GATE, 0.0)

    def forward_rows(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `T(u)`, `[N, D]`, and `log |det T'(u)|`, `[N]`, for `u [N, D]`."""
        f, log_slope = self._network(u)
        gate = tf.convert_to_tensor(self.gate)
        log_kept, log_used = tf.math.log_sigmoid(-gate), tf.math.log_sigmoid(gate)
        z = tf.exp(log_used) * f + tf.exp(log_kept) * u
        # Equal to a log-add-exp, but its gradient is always finite.
        log_det = log_kept + tf.nn.softplus(log_used + log_slope - log_kept)
        return z, tf.reduce_sum(log_det, axis=-1)

    def _network(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `f(u)` and the logarithms of `df_i / du_i`, both `[N, D]`."""
        h = u[:, :, tf.newaxis]  # [N, D, units]
        log_slope = tf.zeros_like(h)
        layers = zip(self.log_diagonals, self.kernels, self.biases, strict=True)
        for i, (log_diagonal, kernel, bias) in enumerate(layers):
            if i:
                # log(1 - tanh^2), without the cancellation of a difference.
                log_slope += 2.0 * (math.log(2.0) - h - tf.nn.softplus(-2.0 * h))
                h = tf.tanh(h)
            h = self._dense(h, log_diagonal, kernel, bias)
            log_slope = tf.reduce_logsumexp(log_slope[..., tf.newaxis] + log_diagonal, axis=-2)
        return h[..., 0], log_slope[..., 0]

    def _dense(
        self,
        h: tf.Tensor,
        log_diagonal: keras.Variable,
        kernel: keras.Variable,
        bias: keras.Variable,
    ) -> tf.Tensor:
        """Applies a layer of blocks to `h [N, D, units]`."""
        _, size, units = log_diagonal.shape
        block = np.arange(self.latent_dim, dtype=np.int32)
        earlier = mask(np.repeat(block + 1, size), np.repeat(block, units), h.dtype)
        flat = tf.matmul(tf.reshape(h, [-1, kernel.shape[0]]), kernel * earlier) + bias
        own = tf.einsum("ndi,dio->ndo", h, tf.exp(log_diagonal))
        return own + tf.reshape(flat, [-1, self.latent_dim, units])
