"""The precision of densities: `float32`, or `float64` where the model's dtype is `float64`.

Networks compute in their dtype policy, such as `mixed_float16`. The Monte Carlo arithmetic never
does so in half precision: states of chains, log-densities, step sizes, temperatures, log weights
and bounds have the *density dtype*. Rounding errors in them add up over the transitions, and a log
weight of 1,000 nats would have an error of 0.25 nats in `float16`.
"""

import keras
import tensorflow as tf


def density_dtype(dtype: str | keras.DTypePolicy | None) -> str:
    """Returns the dtype of densities for a dtype policy, `"float32"` or `"float64"`.

    Args:
        dtype: A dtype, a policy or its name; None for Keras' global policy.
    """
    policy = keras.dtype_policies.get(keras.config.dtype_policy() if dtype is None else dtype)
    return "float64" if policy.variable_dtype == "float64" else "float32"


def wide(values: tf.Tensor) -> tf.Tensor:
    """Returns `values`, cast to `float32` if they are narrower."""
    values = tf.convert_to_tensor(values)
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values
