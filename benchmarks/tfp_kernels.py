"""The bounds with the kernels of `tfp.mcmc` in a Python loop, in the usual style of TFP.

Networks and likelihood are the library's. Each transition has its own kernel, which computes all
values at its temperature: those of another temperature would be wrong. The loop is unrolled in a
`tf.function`.
"""

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from benchmarks.cases import Case
from benchmarks.library import make_model
from tf_mcvae.models.batch import Batch

tfd = tfp.distributions


def log_weights(model: Any, case: Case, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log weights and log-probabilities of the accepts and rejects, each `[S, B]`."""
    posterior = model.posterior(Batch(x))
    z = posterior.sample(case.num_samples)
    log_weight, log_choices = -posterior.log_prob(z), 0.0
    for k in range(case.num_transitions):
        b = (k + 1) / (case.num_transitions + 1)

        def target(z: tf.Tensor, b: float = b) -> tf.Tensor:
            return (1.0 - b) * posterior.log_prob(z) + b * model.log_joint(x, z)

        # TFP's step size is twice the library's.
        if case.model == "L-MCVAE":
            kernel = tfp.mcmc.UncalibratedLangevin(target, 0.02)
            z, results = kernel.one_step(z, kernel.bootstrap_results(z))
            log_weight += results.log_acceptance_correction
        else:
            kernel = tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(target, 0.02)
            before = kernel.bootstrap_results(z)
            z, results = kernel.one_step(z, before)
            old, new = (r.accepted_results.target_log_prob for r in (before, results))
            log_weight += old - new
            log_accept = tf.minimum(results.log_accept_ratio, 0.0)
            log_reject = tf.math.log(1e-8 - tf.math.expm1(log_accept))
            log_choices += tf.where(results.is_accepted, log_accept, log_reject)
    return log_weight + model.log_joint(x, z), log_choices


def loss(model: Any, case: Case, x: tf.Tensor) -> tf.Tensor:
    """Returns the loss."""
    weights, log_choices = log_weights(model, case, x)
    if case.model == "L-MCVAE":
        count = tf.math.log(float(case.num_samples))
        return tf.reduce_mean(count - tf.reduce_logsumexp(weights, axis=0))
    others = (tf.reduce_sum(weights, axis=0) - weights) / (case.num_samples - 1)
    return -tf.reduce_mean(weights + tf.stop_gradient(weights - others) * log_choices)


class Trainer:
    """Training and evaluation steps.

    Args:
        case: An L-MCVAE or A-MCVAE and its sizes.
        images: `[B, H, W, 1]`, a NumPy array.
        device: `"cpu"` or `"gpu"`.
    """

    def __init__(self, case: Case, images: Any, device: str) -> None:
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        x, model = tf.constant(images), make_model(case)
        optimizer = keras.optimizers.Adam(1e-3)
        variables = [*model.encoder.trainable_variables, *model.decoder.trainable_variables]
        optimizer.build(variables)

        @tf.function
        def train() -> tf.Tensor:
            with tf.GradientTape() as tape:
                value = loss(model, case, x)
            optimizer.apply(tape.gradient(value, [v.value for v in variables]), variables)
            return value

        evaluate = tf.function(lambda: loss(model, case, x))
        self.train = lambda: float(train())
        self.evaluate = lambda: float(evaluate())
