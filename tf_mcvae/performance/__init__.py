"""What only makes the same numbers come sooner."""

from tf_mcvae.performance.cores import parallelize_over_batch

__all__ = ["parallelize_over_batch"]
