"""Sends requests to a served model over gRPC, with the stubs of `tensorflow-serving-api`.

    pip install --no-deps tensorflow-serving-api grpcio
    python examples/serving/grpc_client.py --model digits --images x.npy

sends images `[B, H, W, C]` and prints their log-likelihoods. Arrays are sent in binary form, about
ten times faster than as JSON; their dtypes must be those of the signature.
"""

import argparse

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class ServedModel:
    """A model behind TensorFlow Serving's gRPC interface.

    Args:
        name: The model's name on the server.
        target: Host and port of the server.
        version: Number of a version. None selects the newest.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, name, target="localhost:8500", version=None, timeout=60.0):
        self.name, self.version, self.timeout = name, version, timeout
        # Answers to large batches exceed gRPC's default limit of 4 MB.
        self.channel = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", -1)]
        )
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def predict(self, signature, **inputs):
        """Runs a signature on arrays by name; returns arrays by name.

        Raises:
            grpc.RpcError: If the server refuses the request, with its status and message.
        """
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.name
        request.model_spec.signature_name = signature
        if self.version is not None:
            request.model_spec.version.value = self.version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        response = self.stub.Predict(request, timeout=self.timeout)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def close(self):
        """Closes the connection."""
        self.channel.close()


def main():
    parser = argparse.ArgumentParser(description="Sends requests to a served model over gRPC.")
    parser.add_argument("--target", default="localhost:8500")
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True, help="a .npy file of images [B, H, W, C]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    x = np.load(arguments.images)
    name = "log_likelihood_uint8" if x.dtype == np.uint8 else "log_likelihood"
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    seed = np.stack([np.full([len(x)], arguments.seed), np.arange(len(x))], axis=1)
    model = ServedModel(arguments.model, arguments.target)
    answer = model.predict(name, x=x, seed=seed.astype(np.int32))
    for value, error in zip(answer["log_likelihood"], answer["standard_error"], strict=True):
        print(f"{value:.2f} ± {error:.2f} nats")
    model.close()


if __name__ == "__main__":
    main()
