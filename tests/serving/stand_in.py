"""A small server that speaks TensorFlow Serving's protocols, gRPC and REST, from a SavedModel.

For tests of clients where the real server cannot be run; neither fast nor safe. It takes each
request as the real one documents: dtypes are strict over gRPC, JSON is read by rows ("instances")
or by columns ("inputs"), versions are folders with numbers, and the statuses of a failed graph
become HTTP codes. What answers is a session on the file, as in the real server.

    python tests/serving/stand_in.py saved_models/digits/serving --name digits

gRPC needs `pip install --no-deps tensorflow-serving-api`; without it REST alone is served.
"""

import argparse
import contextlib
import http.server
import json
import pathlib
import re
import threading

import numpy as np
import tensorflow as tf

INVALID_ARGUMENT, NOT_FOUND, INTERNAL = "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"
HTTP_CODES = {INVALID_ARGUMENT: 400, NOT_FOUND: 404, INTERNAL: 500}


class RequestError(Exception):
    """A request that is answered with a status."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Version:
    """One version, loaded into a session."""

    def __init__(self, path):
        self.number = int(path.name)
        with tf.Graph().as_default():
            self.session = tf.compat.v1.Session()
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = dict(loaded.signature_def)
        self.signatures.pop("__saved_model_init_op", None)

    def signature(self, name):
        try:
            return self.signatures[name or "serving_default"]
        except KeyError:
            message = f"Serving signature key {name!r} not found."
            raise RequestError(INVALID_ARGUMENT, message) from None

    def predict(self, name, inputs):
        """Runs a signature on arrays by name; gives arrays by name."""
        signature = self.signature(name)
        if inputs.keys() != signature.inputs.keys():
            message = f"inputs must be {sorted(signature.inputs)}, not {sorted(inputs)}"
            raise RequestError(INVALID_ARGUMENT, message)
        feeds = {}
        for key, value in inputs.items():
            info = signature.inputs[key]
            dtype = tf.dtypes.as_dtype(info.dtype)
            if value.dtype != dtype.as_numpy_dtype:
                message = f"Expects arg {key} to be {dtype.name} but {value.dtype} is provided"
                raise RequestError(INVALID_ARGUMENT, message)
            feeds[info.name] = value
        try:
            return self.session.run({k: v.name for k, v in signature.outputs.items()}, feeds)
        except tf.errors.InvalidArgumentError as error:
            raise RequestError(INVALID_ARGUMENT, error.message) from error
        except ValueError as error:  # Python's session looks at shapes; the real one does not.
            raise RequestError(INVALID_ARGUMENT, str(error)) from error
        except tf.errors.OpError as error:
            raise RequestError(INTERNAL, error.message) from error


class Model:
    """A folder of versions, of which the highest is served unless another is asked for."""

    def __init__(self, path, name):
        self.name = name
        paths = [p for p in pathlib.Path(path).iterdir() if p.name.isdecimal()]
        self.versions = {int(p.name): Version(p) for p in sorted(paths, key=lambda p: int(p.name))}

    def find(self, name, number=None):
        version = self.versions.get(number or max(self.versions)) if name == self.name else None
        if version is None:
            raise RequestError(NOT_FOUND, f"Servable not found for request: {name}, {number}")
        return version


# REST.


def read_json(version, body):
    """Returns signature, whether in rows, and arrays by name, of a request's body."""
    try:
        request = json.loads(body)
        name = request.get("signature_name", "serving_default")
        in_rows = "instances" in request
        columns = request["instances"] if in_rows else request["inputs"]
    except (ValueError, KeyError, AttributeError) as error:
        raise RequestError(INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
    infos = version.signature(name).inputs
    if in_rows:
        named = all(isinstance(row, dict) for row in columns)
        if named:
            rows, columns = columns, {}
            for key in (key for key in infos if any(key in row for row in rows)):
                columns[key] = [row[key] for row in rows if key in row]
    if not isinstance(columns, dict):  # One input needs no name.
        columns = {next(iter(infos)): columns}
    arrays = {k: read_array(k, v, infos[k]) for k, v in columns.items() if k in infos}
    if in_rows and len({len(array) for array in arrays.values()}) > 1:
        raise RequestError(INVALID_ARGUMENT, "instances must have the same number of values")
    return name, in_rows, arrays


def read_array(name, values, info):
    """Returns nested lists as an array of the signature's dtype."""
    dtype = np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise RequestError(INVALID_ARGUMENT, f"{name}: encountered list of uneven size") from error
    if array.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        message = f"JSON Value of {name} has not the expected type {dtype}"
        raise RequestError(INVALID_ARGUMENT, message)
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise RequestError(INVALID_ARGUMENT, f"{name}: out of the range of {dtype}")
    return array.astype(dtype)


def write_json(in_rows, outputs):
    """Returns the body of an answer; an only output goes without its name."""
    columns = {name: value.tolist() for name, value in outputs.items()}
    if not in_rows:
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def metadata(version, name):
    """Returns what the real server tells of a version's signatures."""
    from google.protobuf import json_format

    signatures = {
        key: json_format.MessageToDict(value, preserving_proto_field_name=True)
        for key, value in version.signatures.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(version.number)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


PATH = re.compile(r"/v1/models/(\w+)(?:/versions/(\d+))?(/metadata|:predict)?")


def rest_handler(model):
    """Returns the class that answers HTTP requests from a model."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(b"")

        def do_POST(self):
            self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def answer(self, body):
            code = 200
            try:
                content = self.respond(body)
            except RequestError as error:
                code, content = HTTP_CODES[error.status], {"error": str(error)}
            encoded = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def respond(self, body):
            match = PATH.fullmatch(self.path)
            verb = match and match[3]
            if match is None or (verb == ":predict") != (self.command == "POST"):
                raise RequestError(NOT_FOUND, f"Malformed request: {self.command} {self.path}")
            version = model.find(match[1], int(match[2]) if match[2] else None)
            if verb == ":predict":
                name, in_rows, inputs = read_json(version, body)
                return write_json(in_rows, version.predict(name, inputs))
            if verb == "/metadata":
                return metadata(version, match[1])
            status = {"error_code": "OK", "error_message": ""}
            found = {"version": str(version.number), "state": "AVAILABLE", "status": status}
            return {"model_version_status": [found]}

        def log_message(self, *args):
            pass

    return Handler


@contextlib.contextmanager
def serving_rest(model, port=0):
    """Serves REST in a thread; gives the port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), rest_handler(model))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# gRPC.


@contextlib.contextmanager
def serving_grpc(model, port=0):
    """Serves gRPC in threads; gives the port."""
    import concurrent.futures

    import grpc
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    def found(request):
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        return model.find(spec.name, number)

    def with_status(method):
        def answer(self, request, context):
            try:
                return method(self, request)
            except RequestError as error:
                context.abort(getattr(grpc.StatusCode, error.status), str(error))

        return answer

    class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
        @with_status
        def Predict(self, request):  # noqa: N802
            version = found(request)
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            outputs = version.predict(request.model_spec.signature_name, inputs)
            response = predict_pb2.PredictResponse()
            response.model_spec.CopyFrom(request.model_spec)
            response.model_spec.version.value = version.number
            wanted = request.output_filter or list(outputs)
            for name in wanted:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
            return response

        @with_status
        def GetModelMetadata(self, request):  # noqa: N802
            version, response = found(request), get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = version.number
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, value in version.signatures.items():
                signatures.signature_def[name].CopyFrom(value)
            response.metadata["signature_def"].Pack(signatures)
            return response

    from tensorflow_serving.apis import get_model_status_pb2

    class Status(model_service_pb2_grpc.ModelServiceServicer):
        @with_status
        def GetModelStatus(self, request):  # noqa: N802
            version, response = found(request), get_model_status_pb2.GetModelStatusResponse()
            available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            response.model_version_status.add(version=version.number, state=available)
            return response

    # Messages of any size, as in the real server.
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(None).wait()


def main():
    parser = argparse.ArgumentParser(description="Serves a folder of versions over REST and gRPC.")
    parser.add_argument("folder")
    parser.add_argument("--name", default="model")
    parser.add_argument("--rest-port", type=int, default=8501)
    parser.add_argument("--grpc-port", type=int, default=8500)
    arguments = parser.parse_args()
    model = Model(arguments.folder, arguments.name)
    with contextlib.ExitStack() as stack:
        print("REST on port", stack.enter_context(serving_rest(model, arguments.rest_port)))
        try:
            print("gRPC on port", stack.enter_context(serving_grpc(model, arguments.grpc_port)))
        except ModuleNotFoundError as error:
            print(f"no gRPC: {error}")
        threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
