"""Peak memory of a process."""

import os
import pathlib
import subprocess
import sys

import pytest

on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")


def peak() -> float:
    """Returns the peak memory of this process, in MiB.

    `resource.getrusage` would include the memory of the parent process.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def printed(code, *words):
    """Runs Python code, in which `peak` is defined, in a new process; returns its printed words."""
    tests = pathlib.Path(__file__).parent
    paths = os.pathsep.join(map(str, (tests.parent, tests)))
    command = [sys.executable, "-c", f"import sys\nfrom memory import peak\n{code}"]
    done = subprocess.run(
        [*command, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
