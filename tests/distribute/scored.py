"""Scores a model alone, or as one of several workers: `python scored.py alone|workers OUTPUT.npz`.

It also interrupts AIS after the first chunk, and resumes it.
"""

import pathlib
import sys

import numpy as np
from trained import X, make, strategy_of

from tf_mcvae import distribute, evaluation

AIS = {"num_chains": 3, "num_temperatures": 6, "num_leapfrog_steps": 2, "seed": 4}


def scores(model, folder):
    evaluate = evaluation
    checkpoint = {"chunk_size": 9, "checkpoint": folder / "ais.npz"}
    first = evaluate.estimate_log_likelihood(model, X, **AIS, **checkpoint)
    again = evaluate.estimate_log_likelihood(model, X, **AIS, **checkpoint)
    yield from (("ais", first), ("ais_again", again))
    yield "iwae", evaluate.estimate_iwae(model, X, num_samples=60, chunk_size=250)
    yield "elbo", evaluate.estimate_elbo(model, X[:1], num_samples=60)
    yield "bound", evaluate.estimate_bound(model, X, chunk_size=15)
    gap = evaluate.bidirectional_gap(model, num_examples=7, chunk_size=6, **AIS)
    yield from (("lower", gap.lower), ("upper", gap.upper))


def main(workers, output):
    output = pathlib.Path(output)
    strategy = strategy_of("one" if workers == "alone" else "workers")
    model, results = make("LMCVAE-acceptance", None), {}
    with distribute.scope(strategy):
        for name, estimate in scores(model, output.parent):
            results[f"{name}_per_example"] = estimate.per_example
            for key in ("mean", "standard_error", "monte_carlo_error", "acceptance"):
                value = getattr(estimate, key)
                results[f"{name}_{key}"] = np.nan if value is None else value
        distribute.wait_for_all()
    np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
