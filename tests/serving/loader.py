"""Builds `replay.cc` against the installed TensorFlow and runs requests through it."""

import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

from tf_mcvae.export.warm_up import write_requests

SOURCE = pathlib.Path(__file__).with_name("replay.cc")
OK, INVALID_ARGUMENT, FAILED_PRECONDITION, INTERNAL = 0, 3, 9, 13


class Answer(NamedTuple):
    """A request's status, and its outputs by name."""

    code: int
    message: str
    outputs: dict[str, np.ndarray]


def missing() -> str:
    """Says what the program cannot be built without; "" where all is there."""
    if shutil.which("g++") is None:
        return "g++ is not installed"
    library = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    return "" if library.exists() else f"this TensorFlow has no {library.name}"


@functools.cache
def build(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the program, about 15 s, unless the folder has it already, and returns its path."""
    library = tf.sysconfig.get_lib()
    flags = [*tf.sysconfig.get_compile_flags(), "-O0", "-w"]
    # Without `--no-as-needed` the linker drops the library that registers the kernels.
    links = [f"-L{library}", "-Wl,--no-as-needed", f"-Wl,-rpath,{library}"]
    links += ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join([tf.__version__, *flags, *links]).encode())
    program = folder / f"replay-{key.hexdigest()[:16]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = pathlib.Path(scratch) / "replay"
            command = ["g++", *flags, str(SOURCE), "-o", str(built), *links]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"g++ failed: {done.stderr[-4000:]}")
            built.rename(program)
    return program


def run(program, version, requests, answers, repeats=0):
    """Runs the program; returns what it printed, and its peak memory in MiB."""
    command = [str(program), str(version), str(requests), str(answers), str(repeats)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"replay failed ({done.returncode}): {done.stderr[-4000:]}")
    *printed, peak = done.stdout.splitlines()
    return printed, int(peak) / 1024.0


def read_answers(path):
    """Reads what the program wrote."""
    answers, records = [], []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        if record:
            records.append(record)
            continue
        code, _, message = records[0].decode().partition(" ")
        tensors = map(TensorProto.FromString, records[2::2])
        names = (name.decode() for name in records[1::2])
        outputs = {name: tf.make_ndarray(t) for name, t in zip(names, tensors, strict=True)}
        answers.append(Answer(int(code), message, outputs))
        records = []
    return answers


def _fields(message):
    """Yields numbers and contents of a message's fields, all with a length; as `replay.cc` does."""

    def number():
        value, shift = 0, 0
        while True:
            byte = next(stream)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    stream = iter(message)
    for first in stream:
        assert first & 7 == 2
        yield first >> 3, bytes(next(stream) for _ in range(number()))


def read_requests(path):
    """Reads a file of requests: pairs of a signature's name and its inputs."""
    requests = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        ((_, log),) = _fields(record)
        ((_, request),) = _fields(log)
        (_, spec), *entries = _fields(request)
        ((_, name),) = _fields(spec)
        pairs = [dict(_fields(entry)) for _, entry in entries]
        inputs = {p[1].decode(): tf.make_ndarray(TensorProto.FromString(p[2])) for p in pairs}
        requests.append((name.decode(), inputs))
    return requests


def replay(program, version, requests, repeats=0):
    """Answers requests, pairs of a signature's name and its inputs.

    Returns:
        The answers, the lines with the seconds of repeats, and the peak memory in MiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, answers = pathlib.Path(folder) / "requests", pathlib.Path(folder) / "answers"
        write_requests(path, requests)
        printed, memory = run(program, version, path, answers, repeats)
        return read_answers(answers), printed, memory
