"""Checks of arguments that all rooms share."""

from typing import Any

import numpy as np

from tf_mcvae import random


def check_positive_integer(name: str, value: Any) -> None:
    """Raises unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def check_seeds(seed: random.Seed, num_rows: int | None) -> None:
    """Raises if `seed` is a seed for each row, but not for that many rows."""
    if isinstance(seed, random.SeedPerRow):
        shape = seed.seeds.shape
        if not shape[:1].is_compatible_with([num_rows]):
            raise ValueError(
                f"There must be a seed for each of the {num_rows} rows, or one for all of them. "
                f"Received: seeds of shape {shape}"
            )
