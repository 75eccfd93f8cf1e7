"""The machine and the packages that a command computes with."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import sys
from typing import Any

import tensorflow as tf

import tf_mcvae
from tf_mcvae.performance.cores import parallelize_over_batch

_PACKAGES = ("tensorflow", "keras", "tensorflow-probability", "numpy")


def show_gpus(count: int | None) -> None:
    """Lets TensorFlow see only the first `count` GPUs, or with None all of them."""
    if count is None:
        return
    found = tf.config.list_physical_devices("GPU")
    tf.config.set_visible_devices(found[:count], "GPU")
    if len(found) < count:
        print(f"note: --gpus {count}, but TensorFlow finds {len(found)}", file=sys.stderr)


def share_cores(count: int | None, strategy: str) -> None:
    """Lets cores share batches, unless devices do, or the process has begun to compute."""
    if strategy == "none":
        with contextlib.suppress(RuntimeError):
            parallelize_over_batch(count)


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package, and the packages it computes with."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "tf_mcvae": tf_mcvae.__version__, **packages}


def versions_of_run(config: pathlib.Path) -> dict[str, Any]:
    """Returns the versions of a run: `versions` now, and others that it was trained with before.

    Args:
        config: The run's `config.json`, if it has one.
    """
    now = versions()
    if not config.exists():
        return {"versions": now}
    saved = json.loads(config.read_text("utf-8"))
    earlier = saved.get("earlier_versions", [])
    before = saved.get("versions", {})
    changed = [
        f"{name} {before[name]} (now {now.get(name)})"
        for name in before
        if before[name] != now.get(name)
    ]
    if not changed:
        return {"versions": now, **({"earlier_versions": earlier} if earlier else {})}
    print(f"note: this run was begun with {', '.join(changed)}", file=sys.stderr)
    return {"versions": now, "earlier_versions": [*earlier, before]}
