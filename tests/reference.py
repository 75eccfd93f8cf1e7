"""Float64 NumPy twins of the library's formulas, and a model whose evidence is known."""

import keras
import numpy as np
import scipy.special

import tf_mcvae


def logsumexp(values, axis=0):
    return scipy.special.logsumexp(values, axis=axis)


def iwae(log_weights):
    log_weights = np.asarray(log_weights, np.float64)
    return logsumexp(log_weights) - np.log(len(log_weights))


def normal_log_prob(x, loc, scale):
    x, loc, scale = (np.asarray(value, np.float64) for value in (x, loc, scale))
    return np.sum(-0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi), -1)


class LinearGaussian:
    """x = W z + mu + sigma noise, z ~ N(0, I), with an encoder that is off on purpose.

    The exact posterior is `N(M (x - mu), P)`, `P = (I + W'W / sigma^2)^-1`, `M = P W' / sigma^2`. The
    encoder takes a shifted mean and a wider, diagonal scale, so that importance weights vary but
    have finite variance.
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

    def networks(self):
        """An encoder and a decoder of plain Keras layers, as a user would make them."""
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
        model = model_class(*self.networks(), likelihood, **kwargs)
        model.build((None, self.data_dim))
        return model


def within(values, expected, num_errors=5.0):
    """Whether the mean of independent `values` over axis 0 lies within standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    return np.all(np.abs(values.mean(0) - expected) <= num_errors * error)
