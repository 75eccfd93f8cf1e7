"""Faster ways to the same numbers; `plan` decides which of them a step takes."""

from tf_mcvae.performance.cores import parallelize_over_batch

__all__ = ["parallelize_over_batch"]
