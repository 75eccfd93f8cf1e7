"""Writing files and folders that are complete whenever they are visible."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import traceback
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write a file or folder to, and renames it to `path` at the end.

    `path` never holds incomplete content: if writing fails, the old content stays, and the
    temporary path is removed. A file is replaced in a single step. A folder is not: the old one is
    first renamed to `.old-<name>`, so for a moment nothing exists at `path`, and a process that is
    killed in that moment leaves the old folder under that name.
    """
    temporary, old = (path.with_name(f".{prefix}-{path.name}") for prefix in ("tmp", "old"))
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            _remove(old)
            path.rename(old)
        os.replace(temporary, path)
        _remove(old)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Turns an error in a picture, a plot or a card into a warning: no work depends on them.

    Args:
        what: What is written in the block, the beginning of the warning's sentence.
    """
    try:
        yield
    except Exception:  # Whatever it is, the results are worth more.
        warnings.warn(
            f"{what} could not be made; everything else is. Received: {traceback.format_exc()}",
            RuntimeWarning,
            stacklevel=3,
        )


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: pathlib.Path, values: object) -> None:
    """Writes JSON. NaN and infinities, which JSON does not have, become null."""
    with replacing(path) as temporary:
        text = json.dumps(_finite(values), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _finite(values: object) -> object:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
