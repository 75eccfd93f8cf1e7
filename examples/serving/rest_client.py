"""Sends requests to a served model over REST; needs only NumPy.

    python examples/serving/rest_client.py --model digits
    python examples/serving/rest_client.py --model digits --signature encode --images x.npy

The first form lists the signatures. The second sends images `[B, H, W, C]` (floats, or `uint8` for
signatures whose names end in `_uint8`) with the other inputs of the signature, and prints shape and
mean of each output.
"""

import argparse
import json
import urllib.error
import urllib.request

import numpy as np


class ServedModel:
    """A model behind TensorFlow Serving's REST interface.

    Args:
        name: The model's name on the server.
        host: URL of the server's REST port.
        version: Number of a version. None selects the newest.
    """

    def __init__(self, name, host="http://localhost:8501", version=None):
        self.url = f"{host}/v1/models/{name}"
        if version is not None:
            self.url += f"/versions/{version}"

    def metadata(self):
        """Returns the signatures with their inputs and outputs."""
        with urllib.request.urlopen(f"{self.url}/metadata") as response:
            return json.load(response)["metadata"]["signature_def"]["signature_def"]

    def predict(self, signature, **inputs):
        """Runs a signature on arrays by name; returns an array, or several arrays by name.

        Raises:
            ValueError: If the server refuses the request; the message is the server's.
        """
        columns = {name: np.asarray(value).tolist() for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        request = urllib.request.Request(f"{self.url}:predict", body)
        try:
            with urllib.request.urlopen(request) as response:
                outputs = json.load(response)["outputs"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error
        if isinstance(outputs, dict):
            return {name: np.asarray(value) for name, value in outputs.items()}
        return np.asarray(outputs)


def seeds(count, first=0):
    """Returns a seed for each of `count` rows, `[count, 2]`; equal seeds give equal draws."""
    return np.stack([np.full([count], first), np.arange(count)], axis=1)


def main():
    parser = argparse.ArgumentParser(description="Sends requests to a served model over REST.")
    parser.add_argument("--host", default="http://localhost:8501")
    parser.add_argument("--model", required=True)
    parser.add_argument("--signature")
    parser.add_argument("--images", help="a .npy file of images [B, H, W, C]")
    parser.add_argument("--count", type=int, default=4, help="number of rows if no images are sent")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = ServedModel(arguments.model, arguments.host)
    signatures = model.metadata()
    if arguments.signature is None:
        for name, signature in sorted(signatures.items()):
            print(f"{name}({', '.join(signature['inputs'])}): {', '.join(signature['outputs'])}")
        return
    wanted, inputs = signatures[arguments.signature]["inputs"], {}
    if "x" in wanted:
        inputs["x"] = np.load(arguments.images)
    count = len(inputs["x"]) if inputs else arguments.count
    if "seed" in wanted:
        inputs["seed"] = seeds(count, arguments.seed)
    if "num_samples" in wanted:
        inputs["num_samples"] = np.full([count], 10)
    if "z" in wanted:
        inputs["z"] = np.zeros([count, int(wanted["z"]["tensor_shape"]["dim"][1]["size"])])
    answer = model.predict(arguments.signature, **inputs)
    for name, value in (answer if isinstance(answer, dict) else {"answer": answer}).items():
        print(f"{name}: shape {value.shape}, mean {value.mean():.4f}")


if __name__ == "__main__":
    main()
