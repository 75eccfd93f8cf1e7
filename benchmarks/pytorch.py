"""The models in PyTorch, written from the equations in the usual style of PyTorch.

Each transition evaluates the target and its gradient where it needs them: the gradient at both ends
of a proposal, and the density at both ends for the acceptance. No values are kept between
transitions.
"""

import math
from typing import Any

import torch
from torch import nn

from benchmarks.cases import Case


class Block(nn.Module):
    """An optional resize, two 3x3 convolutions with gelu, and a residual connection."""

    def __init__(self, inputs: int, middle: int, outputs: int, size: int | None = None) -> None:
        super().__init__()
        self.size, self.lacking = size, outputs - inputs
        self.first = nn.Conv2d(inputs, middle, 3, padding=1)
        self.second = nn.Conv2d(middle, outputs, 3, padding=1)
        self.activation = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.size is not None:
            x = nn.functional.interpolate(x, size=(self.size, self.size), mode="nearest")
        y = self.activation(self.second(self.activation(self.first(x))))
        return y + nn.functional.pad(x, (0, 0, 0, 0, 0, self.lacking)) if self.lacking >= 0 else y


class Encoder(nn.Sequential):
    """Maps `x [N, 1, H, W]` to location and log variance, `[N, 2 D]`."""

    def __init__(self, case: Case) -> None:
        side = case.image_size // 8
        super().__init__(
            Block(1, 16, 16),
            nn.MaxPool2d(2),
            Block(16, 32, 32),
            nn.MaxPool2d(2),
            Block(32, 64, 64),
            nn.MaxPool2d(2),
            Block(64, 64, 64),
            nn.Flatten(),
            nn.Linear(64 * side * side, 2 * case.latent_dim),
        )


class Decoder(nn.Sequential):
    """Maps `z [N, D]` to logits `[N, 1, H, W]`."""

    def __init__(self, case: Case) -> None:
        side = case.image_size // 8
        super().__init__(
            nn.Linear(case.latent_dim, 64 * side * side),
            nn.Unflatten(1, (64, side, side)),
            Block(64, 32, 32, 2 * side),
            Block(32, 16, 16, 4 * side),
            Block(16, 8, 16, case.image_size),
            nn.Conv2d(16, 1, 1),
        )


def normal_log_prob(z: torch.Tensor, loc: Any, scale: Any) -> torch.Tensor:
    """Sums `log N(z; loc, scale^2)` over the last axis."""
    return torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)


class Model(nn.Module):
    """VAE, IWAE, L-MCVAE or A-MCVAE for Bernoulli pixels.

    Args:
        case: The model and its sizes.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.encoder, self.decoder = Encoder(case), Decoder(case)
        self.register_buffer("step_sizes", torch.full([case.num_transitions], 0.01))

    def log_joint(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Returns `log p(x, z)`, `[S, B]`."""
        logits = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        x = x.expand_as(logits)
        pixels = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        one = torch.ones([], device=z.device)
        return pixels.sum([2, 3, 4]) + normal_log_prob(z, 0.0 * one, one)

    def loss(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the loss, and the acceptance of each transition `[K]`."""
        loc, log_variance = self.encoder(x).chunk(2, -1)
        scale = torch.exp(0.5 * log_variance)
        z = loc + scale * torch.randn_like(loc.expand(self.case.num_samples, *loc.shape))
        if self.case.model == "VAE":
            kl = 0.5 * (loc**2 + scale**2 - 1.0 - log_variance).sum(-1)
            one = torch.ones([], device=z.device)
            log_likelihood = self.log_joint(x, z) - normal_log_prob(z, 0.0 * one, one)
            return -(log_likelihood - kl).mean(), self.step_sizes
        if self.case.model == "IWAE":
            log_weights = self.log_joint(x, z) - normal_log_prob(z, loc, scale)
            return -log_mean_exp(log_weights).mean(), self.step_sizes
        log_weights, log_choices, acceptance = self.anneal(x, z, loc, scale)
        if self.case.model == "L-MCVAE":
            return -log_mean_exp(log_weights).mean(), acceptance
        others = (log_weights.sum(0) - log_weights) / (self.case.num_samples - 1)
        advantage = (log_weights - others).detach()
        return -(log_weights + advantage * log_choices).mean(), acceptance

    def anneal(
        self, x: torch.Tensor, z: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs the K transitions.

        Returns:
            Log weights `[S, B]`, log-probabilities of the accepts and rejects `[S, B]`, acceptance
            `[K]`.
        """
        adjusted = self.case.model == "A-MCVAE"
        log_weights = -normal_log_prob(z, loc, scale)
        log_choices, acceptance = torch.zeros_like(log_weights), []
        for k in range(self.case.num_transitions):
            b, step = (k + 1) / (self.case.num_transitions + 1), self.step_sizes[k]

            def target(z: torch.Tensor, b: float = b) -> torch.Tensor:
                return (1.0 - b) * normal_log_prob(z, loc, scale) + b * self.log_joint(x, z)

            new, log_ratio = langevin_move(target, z, step)
            with torch.set_grad_enabled(adjusted and torch.is_grad_enabled()):
                old_density, new_density = target(z), target(new)
                log_accept = (new_density - old_density + log_ratio).clamp(max=0.0)
            accepted = torch.log(torch.rand_like(log_accept)) < log_accept
            acceptance.append(accepted.float().mean())
            if adjusted:
                log_reject = torch.log(1.0 - torch.exp(log_accept) + 1e-8)
                log_choices = log_choices + torch.where(accepted, log_accept, log_reject)
                z = torch.where(accepted[..., None], new, z)
                log_ratio = torch.where(accepted, old_density - new_density, 0.0)
            else:
                z = new
            log_weights = log_weights + log_ratio
        return log_weights + self.log_joint(x, z), log_choices, torch.stack(acceptance)

    def adapt(self, acceptance: torch.Tensor) -> None:
        """Adapts the step sizes towards an acceptance of 0.9."""
        factor = torch.where(acceptance >= 0.9, 1.002, 0.998)
        self.step_sizes.copy_((self.step_sizes * factor).clamp(1e-3, 0.5))


def langevin_move(target: Any, z: torch.Tensor, step: torch.Tensor) -> Any:
    """Makes an unadjusted Langevin transition; returns state and log ratio of the kernels."""
    noise = torch.randn_like(z)
    new = z + step * gradient(target, z) + torch.sqrt(2.0 * step) * noise
    back = (z - new - step * gradient(target, new)) / torch.sqrt(2.0 * step)
    return new, 0.5 * (noise**2 - back**2).sum(-1)


def gradient(target: Any, z: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of `target` with respect to `z`, itself differentiable in training."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not differentiable:
            z = z.detach().requires_grad_()
        return torch.autograd.grad(target(z).sum(), z, create_graph=differentiable)[0]


def log_mean_exp(log_weights: torch.Tensor) -> torch.Tensor:
    """Returns the logarithm of the mean weight over S."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


class Trainer:
    """Training and evaluation steps.

    Args:
        case: The model and its sizes.
        images: `[B, H, W, 1]`, a NumPy array.
        device: `"cpu"` or `"gpu"`.
        compiled: Whether `torch.compile` compiles the loss.
    """

    def __init__(self, case: Case, images: Any, device: str, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if device == "gpu" else "cpu")
        self.x = torch.tensor(images).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.model = Model(case).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.loss = torch.compile(self.model.loss) if compiled else self.model.loss

    def train(self) -> float:
        """Takes one training step and returns the loss."""
        self.optimizer.zero_grad()
        loss, acceptance = self.loss(self.x)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.adapt(acceptance.detach())
        return loss.item()

    def evaluate(self) -> float:
        """Returns the loss in evaluation."""
        with torch.no_grad():
            return self.loss(self.x)[0].item()
