"""Requests in the format that TensorFlow Serving replays when it loads a model.

The messages are `PredictionLog`s of `tensorflow-serving-api`. To avoid that dependency, they are
encoded here in the wire format of protocol buffers: a field is its number, its length, and its
bytes.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Requests = Sequence[tuple[str, Mapping[str, np.ndarray[Any, Any]]]]

# Field numbers of the message definitions.
_PREDICT_LOG = 6  # PredictionLog.predict_log
_REQUEST = 1  # PredictLog.request
_MODEL_SPEC, _INPUTS = 1, 2  # PredictRequest
_SIGNATURE_NAME = 3  # ModelSpec.signature_name
_KEY, _VALUE = 1, 2  # An entry of a map.

_BYTES_WITH_LENGTH = 2


def _number(value: int) -> bytes:
    """Returns an integer in groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _BYTES_WITH_LENGTH) + _number(len(content)) + content


def prediction_log(signature: str, inputs: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Returns a request as a serialised `PredictionLog`.

    Args:
        signature: Name of the signature.
        inputs: Arrays by the names of its inputs.
    """
    request = _field(_MODEL_SPEC, _field(_SIGNATURE_NAME, signature.encode()))
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def write_requests(path: pathlib.Path, requests: Requests) -> None:
    """Writes requests as a TFRecord file.

    Args:
        path: The file. TensorFlow Serving reads
            `<version>/assets.extra/tf_serving_warmup_requests`.
        requests: Pairs of a signature's name and its inputs. TensorFlow Serving reads at most 1000.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(prediction_log(signature, inputs))
