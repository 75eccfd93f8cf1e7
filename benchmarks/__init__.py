"""Speed and memory of the library, compared with other ways to compute the same bounds."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
