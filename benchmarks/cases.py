"""The measured models: the reference's convolutional networks for images of MNIST's shape."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A model and the sizes with which it is measured.

    Attributes:
        model: `"VAE"`, `"IWAE"`, `"L-MCVAE"`, `"A-MCVAE"`, or another name of `--model`, which
            only the library has.
        num_transitions: K; 0 for a model without transitions.
        num_samples: S.
        batch_size: B.
        latent_dim: D.
        image_size: Side of the images, which have one channel.
        policy: Keras dtype policy of the networks.
    """

    model: str
    num_transitions: int = 0
    num_samples: int = 1
    batch_size: int = 100
    latent_dim: int = 64
    image_size: int = 28
    policy: str = "float32"

    @property
    def name(self) -> str:
        """The name in tables, such as `"L-MCVAE K=5"`."""
        parts = [self.model]
        parts += [f"K={self.num_transitions}"] if self.num_transitions else []
        parts += [f"S={self.num_samples}"] if self.num_samples > 1 else []
        return " ".join(parts)

    @property
    def is_published(self) -> bool:
        """Whether the reference has the model, so that other variants compute it too."""
        return self.model in ("VAE", "IWAE", "L-MCVAE", "A-MCVAE")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        return (self.image_size, self.image_size, 1)


CASES = (
    Case("VAE"),
    Case("IWAE", num_samples=10),
    Case("L-MCVAE", num_transitions=5),
    Case("UHA", num_transitions=5),
    Case("L-MCVAE", num_transitions=10),
    Case("A-MCVAE", num_transitions=3, num_samples=5),
)
