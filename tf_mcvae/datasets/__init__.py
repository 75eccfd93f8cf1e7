"""Data: a name, an array, a file or a folder -> batches of images and a description of them."""

from tf_mcvae.datasets.loading import Binarize, Data, DataSpec, load, skip_epochs
from tf_mcvae.datasets.records import write_records
from tf_mcvae.datasets.sources import NAMES

__all__ = ["NAMES", "Binarize", "Data", "DataSpec", "load", "skip_epochs", "write_records"]
