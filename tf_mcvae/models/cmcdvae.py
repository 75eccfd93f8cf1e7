"""CMCD: controlled Monte Carlo diffusion."""

import keras

from tf_mcvae.kernels import Drift, Place, UnadjustedLangevin
from tf_mcvae.models.annealed import Transition
from tf_mcvae.models.mcdvae import MCDVAE


@keras.saving.register_keras_serializable("tf_mcvae")
class CMCDVAE(MCDVAE):
    """Controlled Monte Carlo diffusion: a learned drift that guides the chain along the path.

    The transitions and the kernels that run backwards have the means

        z_{k-1} + e_k s_{b_k}(z_{k-1}) + e_k a(z_{k-1}, h(x), (k-1)/K)    and
        z_k     + e_k s_{b_k}(z_k)     - e_k a(z_k, h(x), k/K)

    with the network `a` of `MCDVAE`. With the best `a`, the states follow the densities `pi_b`, and
    the two processes are each other's reversal as the steps become small. Arguments and cost are
    those of `MCDVAE`, but two more evaluations of the network a transition.

    Reference:
        Vargas et al., Transport meets Variational Inference: Controlled Monte Carlo Diffusions,
        arXiv 2307.01050.
    """

    suits_xla = True

    def make_kernel(self, transition: Transition) -> UnadjustedLangevin:
        """Makes an unadjusted Langevin kernel with the learned drift both ways."""

        def forward_drift(place: Place) -> Drift:
            return Drift(place.score + self.learned_drift(transition, place, 0))

        def backward_drift(place: Place) -> Drift:
            return Drift(place.score - self.learned_drift(transition, place, 1))

        return UnadjustedLangevin(
            transition.path,
            transition.step_size,
            transition.inverse_temperature,
            forward_drift=forward_drift,
            backward_drift=backward_drift,
        )
