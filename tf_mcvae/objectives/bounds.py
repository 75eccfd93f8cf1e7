"""Bounds on the evidence from log weights `[S, B]`, and losses whose gradients train them.

Every function is pure. The gradient of a *loss* estimates minus the gradient of the bound; its
value need not be a bound.
"""

from collections.abc import Callable

import tensorflow as tf


def elbo(log_weights: tf.Tensor) -> tf.Tensor:
    """Returns the evidence lower bound, the mean of the log weights over S.

    Args:
        log_weights: `[S, B]`, in nats.

    Returns:
        `[B]`, in nats.

    Reference:
        Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114.
    """
    return tf.reduce_mean(log_weights, axis=0)


def iwae(log_weights: tf.Tensor) -> tf.Tensor:
    """Returns the importance-weighted bound `log (1/S sum_s w_s)`; with S = 1 it is the ELBO.

    Args:
        log_weights: `[S, B]`, in nats.

    Returns:
        `[B]`, in nats.

    Reference:
        Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519.
    """
    log_num_samples = tf.math.log(tf.cast(tf.shape(log_weights)[0], log_weights.dtype))
    return tf.reduce_logsumexp(log_weights, axis=0) - log_num_samples


def dreg_loss(log_weights: tf.Tensor, state: tf.Tensor, path_score: tf.Tensor) -> tf.Tensor:
    """Returns the doubly reparameterised loss of the importance-weighted bound.

    With self-normalised weights `v_s = w_s / sum_r w_r`, held constant, the decoder's gradient is
    `sum_s v_s d log w_s`, the encoder's `sum_s v_s^2 (d log w_s / d z_s) d z_s`.

    Args:
        log_weights: `[S, B]`, with gradients stopped at the state and the encoder's parameters, so
            that only the decoder's gradient runs through it.
        state: `z = loc + scale * noise`, `[S, B, D]`; the encoder's gradient runs through it.
        path_score: `d log w / d z`, `[S, B, D]`.

    Returns:
        `[B]`.

    Reference:
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives,
        arXiv 1810.04152.
    """
    weights = tf.stop_gradient(tf.nn.softmax(log_weights, axis=0))
    pull = tf.stop_gradient(tf.square(weights)[..., tf.newaxis] * path_score)
    encoder_term = tf.reduce_sum(pull * state, axis=[0, 2])
    return -tf.reduce_sum(weights * log_weights, axis=0) - encoder_term


def log_variance(log_weights: tf.Tensor) -> tf.Tensor:
    """Returns half the variance of the log weights over S, in the unbiased estimate.

    At states that are held constant, the weights are functions of parameters. Where these states
    are drawn with the current parameters, the expected gradient is that of minus the ELBO for
    parameters of the proposals alone. Parameters of the kernels that run backwards have another
    gradient, which also vanishes where all weights are equal.

    Args:
        log_weights: `[S, B]`, in nats; S at least 2.

    Returns:
        `[B]`, in nats squared. It is 0 where all weights are equal, and is no bound.

    Reference:
        Richter et al., VarGrad: A Low-Variance Gradient Estimator for Variational Inference, arXiv
        2010.10436; Vargas et al., arXiv 2307.01050.
    """
    distances = log_weights - tf.reduce_mean(log_weights, axis=0)
    num_others = tf.cast(tf.shape(log_weights)[0] - 1, log_weights.dtype)
    return 0.5 * tf.reduce_sum(tf.square(distances), axis=0) / num_others


class LateFactor:
    """A factor on the gradient of a tensor that is known only after what is made of the tensor.

    The importance-weighted bound, with weights whose `log q(z_0)` is constant but for `z_0`, has
    the gradient `sum_s v_s d log w_s` with the self-normalised weights `v_s`. The doubly
    reparameterised one has `v_s^2` for the part through `z_0`, so that its gradient needs the
    factor `v_s`. The other noise of a chain has a density without parameters.

    Attributes:
        value: `[S, B]`, to be set before the gradient is taken.

    Reference:
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives,
        arXiv 1810.04152.
    """

    value: tf.Tensor

    def scale_gradient(self, state: tf.Tensor) -> tf.Tensor:
        """Returns `state [S, B, D]`, the gradient of which is multiplied by the factor."""

        @tf.custom_gradient
        def identity(state: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            return tf.identity(state), lambda upstream: upstream * self.value[..., tf.newaxis]

        return identity(state)


def score_function_loss(
    log_weights: tf.Tensor, log_choice_probs: tf.Tensor, coefficient: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """Returns the loss of the annealed bound with accept/reject choices.

    The choices depend on the parameters through their probabilities, which adds a score-function
    term to the gradient. With a leave-one-out baseline, the loss is

        loss = -mean_s l_s - c mean_s stop(l_s - mean_{r != s} l_r) log P(choices_s),

    where `l` is the log weight and `c` the coefficient. With S = 1 the baseline is 0.

    Args:
        log_weights: `[S, B]`.
        log_choice_probs: Log-probability of all choices of a chain, `[S, B]`.
        coefficient: `c`; 1 gives the unbiased gradient, less warms up the term.

    Returns:
        `[B]`. Its gradient estimates that of `-E[mean_s l_s]`; its value is not a bound.

    Reference:
        Thin et al., Monte Carlo Variational Auto-Encoders, ICML 2021, arXiv 2106.15921.
    """
    others = tf.reduce_sum(log_weights, axis=0) - log_weights
    num_others = tf.maximum(tf.shape(log_weights)[0] - 1, 1)
    baseline = others / tf.cast(num_others, log_weights.dtype)
    advantage = tf.stop_gradient(log_weights - baseline)
    score_term = tf.reduce_mean(advantage * log_choice_probs, axis=0)
    return -elbo(log_weights) - coefficient * score_term


def choose_transition(slopes: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Chooses one transition of each chain, with probabilities proportional to `slopes`.

    Args:
        slopes: Not negative, `[K, S, B]`.
        draws: Uniform on (0, 1), `[S, B]`.

    Returns:
        Whether a transition is the chosen one, bool `[K, S, B]`. A slope of 0 is never chosen; none
        is if all are 0.
    """
    ends = tf.cumsum(slopes, axis=0)
    begins = tf.concat([tf.zeros_like(ends[:1]), ends[:-1]], axis=0)
    mark = tf.cast(draws, slopes.dtype) * ends[-1]
    return (begins <= mark) & (mark < ends) & (slopes > 0.0)


def coupled_loss(
    log_weights: tf.Tensor,
    inverted_log_weights: tf.Tensor,
    log_accept_ratios: tf.Tensor,
    slopes: tf.Tensor,
    is_accepted: tf.Tensor,
    is_inverted: tf.Tensor,
    coefficient: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """Returns the loss of the annealed bound with accept/reject choices, by coupled chains.

    Choice k, accepted with probability `a_k`, adds to the gradient of `E[l]` the expectation of

        (l | accepted - l | rejected) d a_k,        d a_k = a'_k d log t_k,

    where `l` is the log weight, `t_k` the Metropolis-Hastings ratio and `a'_k` the slope. One of
    the two log weights is the chain's own; the other is that of a chain with the same random
    numbers and the opposite choice k. A single choice, drawn with probability `a'_k / sum_j a'_j`,
    stands for all, with the factor `sum_j a'_j / a'_k`.

    Args:
        log_weights: `[S, B]`.
        inverted_log_weights: Those of the chains with one choice inverted, `[S, B]`.
        log_accept_ratios: `log t`, `[K, S, B]`.
        slopes: `a'`, `[K, S, B]`.
        is_accepted: The choices, bool `[K, S, B]`.
        is_inverted: Which of them is inverted, bool `[K, S, B]`; see `choose_transition`. A chain
            without any, where no choice depends on the parameters, adds no term.
        coefficient: Factor of the term; 1 gives the unbiased gradient, less warms it up.

    Returns:
        `[B]`. Its gradient estimates that of `-E[mean_s l_s]`, also with S = 1; its value is minus
        the bound, `-mean_s l_s`.

    Reference:
        Arya et al., Automatic Differentiation of Programs with Discrete Randomness, arXiv
        2210.08572; Differentiating Metropolis-Hastings to Optimize Intractable Densities, arXiv
        2306.07961.
    """
    change = tf.where(
        tf.reduce_any(is_inverted & is_accepted, axis=0),
        log_weights - inverted_log_weights,
        inverted_log_weights - log_weights,
    )
    pull = tf.stop_gradient(tf.reduce_sum(slopes, axis=0) * change)
    # The ratio of a choice that is not inverted may be infinite.
    chosen = tf.where(is_inverted, log_accept_ratios, tf.zeros_like(log_accept_ratios))
    log_ratio = tf.reduce_sum(chosen, axis=0)
    term = tf.reduce_mean(pull * (log_ratio - tf.stop_gradient(log_ratio)), axis=0)
    return -elbo(log_weights) - coefficient * term
