"""Float64 NumPy twins of the library's formulas, and a model whose evidence is known."""

import math

import keras
import numpy as np
import scipy.special

import tf_mcvae


def logsumexp(values, axis=0):
    return scipy.special.logsumexp(values, axis=axis)


def iwae(log_weights):
    log_weights = np.asarray(log_weights, np.float64)
    return logsumexp(log_weights) - np.log(len(log_weights))


def jackknife(log_weights):
    """Bias and variance of `iwae`, leaving out one of the draws `[S, ...]` at a time."""
    log_weights = np.asarray(log_weights, np.float64)
    size = len(log_weights)
    without = np.array([iwae(np.delete(log_weights, s, 0)) for s in range(size)])
    bias = (size - 1) * (without.mean(0) - iwae(log_weights))
    return bias, (size - 1) * without.var(0)


def normal_log_prob(x, loc, scale):
    x, loc, scale = (np.asarray(value, np.float64) for value in (x, loc, scale))
    return np.sum(-0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi), -1)


def gelu(values):
    return values * scipy.special.ndtr(values)


def drift_network(kernels, biases, inputs, time):
    """`net([z, h, sin(pi 2^j t), cos(pi 2^j t)])`, the time beside every row."""
    num_frequencies = (len(kernels[0]) - sum(part.shape[-1] for part in inputs)) // 2
    angles = np.pi * 2.0 ** np.arange(num_frequencies) * time
    parts = [*inputs, np.concatenate([np.sin(angles), np.cos(angles)])]
    shape = inputs[0].shape[:-1]
    values = np.concatenate([np.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], -1)
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        values = (gelu(values) if number else values) @ kernel + bias
    return values


def as_if_trained(layer, scale=1.0):
    """Gives the last kernel of a network, which starts at 0, random numbers of Glorot's size."""
    kernel = layer.kernels[-1]
    limit = scale * np.sqrt(6.0 / sum(kernel.shape[-2:]))
    kernel.assign(np.random.default_rng(1).uniform(-limit, limit, kernel.shape))


def sigmoid(values):
    return scipy.special.expit(np.asarray(values, np.float64))


def sigmoidal_temperatures(steepness, num_transitions):
    """`b_k = (s(t_k) - s(0)) / (s(1) - s(0))`, `s(t) = sigmoid(steepness (2 t - 1))`."""
    values = sigmoid(steepness * np.linspace(-1.0, 1.0, num_transitions + 2))
    return (values - values[0]) / (values[-1] - values[0])


def learned_temperatures(logits):
    """`b_k = sigmoid(u_k) ... sigmoid(u_K)` between 0 and 1."""
    inner = [np.prod(sigmoid(logits[k:])) for k in range(len(logits))]
    return np.array([0.0, *inner, 1.0])


def gaussian_kl(loc, scale):
    """`KL(N(loc, diag(scale^2)) || N(0, I))`."""
    loc, scale = np.asarray(loc, np.float64), np.asarray(scale, np.float64)
    return np.sum(0.5 * (loc**2 + scale**2 - 1) - np.log(scale), -1)


def advantages(log_weights):
    """Log weights minus the mean of the others, over axis 0. A single one is returned as is."""
    log_weights = np.asarray(log_weights, np.float64)
    others = [np.delete(log_weights, s, 0) for s in range(len(log_weights))]
    baseline = [other.mean(0) if len(other) else 0.0 for other in others]
    return log_weights - np.array(baseline)


class LinearGaussian:
    """x = W z + mu + sigma noise, z ~ N(0, I), with an encoder that is deliberately inexact.

    The exact posterior is `N(M (x - mu), P)`, `P = (I + W'W / sigma^2)^-1`, `M = P W' / sigma^2`.
    The encoder takes a shifted mean and a wider, diagonal scale, so that importance weights vary
    but have finite variance.
    """

    def __init__(self, latent_dim=2, data_dim=5, sigma=0.7, seed=0):
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=[data_dim, latent_dim]) * 0.6
        self.loc = rng.normal(size=[data_dim]) * 0.3
        self.sigma, self.latent_dim, self.data_dim = sigma, latent_dim, data_dim
        self.posterior_cov = np.linalg.inv(
            np.eye(latent_dim) + self.weight.T @ self.weight / sigma**2
        )
        self.gain = self.posterior_cov @ self.weight.T / sigma**2

    def data(self, num, seed=1):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=[num, self.latent_dim])
        noise = rng.normal(size=[num, self.data_dim])
        return (z @ self.weight.T + self.loc + self.sigma * noise).astype(np.float32)

    def log_evidence(self, x):
        """The exact `log p(x)`, `[B]`."""
        covariance = self.weight @ self.weight.T + self.sigma**2 * np.eye(self.data_dim)
        centred = np.asarray(x, np.float64) - self.loc
        quadratic = np.einsum("bi,ij,bj->b", centred, np.linalg.inv(covariance), centred)
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        return -0.5 * (quadratic + log_det)

    def encoder_moments(self, x):
        """Mean `[B, D]` and variance `[D]` of the encoder's `q(z|x)`."""
        loc = (0.8 * np.asarray(x, np.float64) - self.loc) @ self.gain.T + 0.15
        return loc, 1.5 * np.diag(self.posterior_cov)

    def log_joint(self, x, z):
        mean = z @ self.weight.T + self.loc
        return normal_log_prob(z, 0.0, 1.0) + normal_log_prob(x, mean, self.sigma)

    def log_posterior(self, x, z):
        """The encoder's `log q(z|x)`."""
        loc, variance = self.encoder_moments(x)
        return normal_log_prob(z, loc, np.sqrt(variance))

    def score(self, x, z, b):
        """The gradient of `log pi_b` with respect to z."""
        loc, variance = self.encoder_moments(x)
        joint = (x - self.loc - z @ self.weight.T) @ self.weight / self.sigma**2 - z
        return (1 - b) * (loc - z) / variance + b * joint

    def elbo(self, x):
        """The exact `E_q[log p(x, z) - log q(z|x)]`, `[B]`."""
        loc, variance = self.encoder_moments(x)
        # The expectation of a square adds the variance of q.
        spread = np.sum(self.weight**2 @ variance) / self.sigma**2
        log_lik = normal_log_prob(x, loc @ self.weight.T + self.loc, self.sigma) - 0.5 * spread
        return log_lik - gaussian_kl(loc, np.sqrt(variance))

    def networks(self):
        """An encoder and a decoder of Keras layers, like those of a user."""
        encoder = keras.Sequential([keras.layers.Dense(2 * self.latent_dim)])
        decoder = keras.Sequential([keras.layers.Dense(self.data_dim)])
        encoder.build((None, self.data_dim))
        decoder.build((None, self.latent_dim))
        log_variance = np.log(1.5 * np.diag(self.posterior_cov))
        kernel = np.concatenate([0.8 * self.gain.T, np.zeros([self.data_dim, self.latent_dim])], 1)
        bias = np.concatenate([0.15 - self.gain @ self.loc, log_variance])
        encoder.set_weights([kernel, bias])
        decoder.set_weights([self.weight.T, self.loc])
        return encoder, decoder

    def model(self, model_class, **kwargs):
        """A model of the library with these networks, built."""
        likelihood = tf_mcvae.Gaussian(scale=self.sigma)
        model = model_class(*self.networks(), likelihood=likelihood, **kwargs)
        model.build((None, self.data_dim))
        return model


def within(values, expected, num_errors=5.0):
    """Whether the mean of independent `values` over axis 0 lies within standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    return np.all(np.abs(values.mean(0) - expected) <= num_errors * error)


def numpy_conv(x, kernel, bias):
    size = kernel.shape[0]
    padded = np.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)])
    height, width = x.shape[1:3]
    return bias + sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def numpy_resize(x, height, width):
    rows = [math.floor(i * x.shape[1] / height) for i in range(height)]
    columns = [math.floor(j * x.shape[2] / width) for j in range(width)]
    return x[:, rows][:, :, columns]
