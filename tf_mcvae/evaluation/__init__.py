"""Held-out log-likelihood with error bars: ELBO, IWAE-k, and annealed importance sampling.

Every function takes images as an array or a `tf.data.Dataset` of batches (`x` or `(x, y)`), draws
from one seed, and returns a result that prints and turns to JSON. All estimates are in nats per
example and are lower bounds in expectation, which tighten with their settings;
`bidirectional_gap` says how far.

Inside the scope of a `MultiWorkerMirroredStrategy` the workers share the examples; every one must
call the same functions, and has the same results, those of one process but for rounding.
"""

from tf_mcvae.evaluation.annealed import PRESETS, bidirectional_gap, estimate_log_likelihood
from tf_mcvae.evaluation.results import (
    BidirectionalGap,
    Comparison,
    LogLikelihoodEstimate,
    compare,
)
from tf_mcvae.evaluation.sampling import (
    LatentStatistics,
    estimate_bound,
    estimate_elbo,
    estimate_iwae,
    latent_statistics,
)

__all__ = [
    "PRESETS",
    "BidirectionalGap",
    "Comparison",
    "LatentStatistics",
    "LogLikelihoodEstimate",
    "bidirectional_gap",
    "compare",
    "estimate_bound",
    "estimate_elbo",
    "estimate_iwae",
    "estimate_log_likelihood",
    "latent_statistics",
]
