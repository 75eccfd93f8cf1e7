"""From a path and its kernels to log weights, and from log weights to bounds and losses."""
