"""Held-out log-likelihood with error bars: ELBO, IWAE-k, and annealed importance sampling.

Every function takes images as an array or a `tf.data.Dataset` of batches (`x` or `(x, y)`), takes
one seed, and returns a result that prints and converts to JSON. All estimates are in nats per
example and are lower bounds in expectation, which tighten with their settings;
`bidirectional_gap` bounds their error.

Inside the scope of a `MultiWorkerMirroredStrategy` the workers share the examples. Each must call
the same functions, and gets the same results, which are those of one process up to rounding.
"""

from tf_mcvae.evaluation.annealed import bidirectional_gap, estimate_log_likelihood
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
from tf_mcvae_commands.ais import PRESETS, AISSettings

__all__ = [
    "PRESETS",
    "AISSettings",
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
