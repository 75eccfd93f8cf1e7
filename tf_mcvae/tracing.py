"""How the library's functions are traced by a `tf.function`: as they are written.

AutoGraph rewrites the Python code of a `tf.function` and of all that it calls, so that `if` and
`for` may depend on tensors. Nothing here needs that, and rewriting this code takes longer than
tracing it: 4 of 5 seconds for the gradient of a bound. TensorFlow exempts its own libraries, such
as TFP and Keras, by name; others have to ask for it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

Function = TypeVar("Function", bound=Callable[..., Any])


def as_written(function: Function) -> Function:
    """Exempts a function, and what it calls, from AutoGraph."""
    exempt: Function = tf.autograph.experimental.do_not_convert(function)
    return exempt
