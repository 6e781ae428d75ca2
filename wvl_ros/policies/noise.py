"""The fixed exploration noise of an action chunk, with exact log-probabilities.

A policy that samples each action on its own trembles; one that samples a slow offset explores. The noise is Gaussian,
fixed, and correlated inside a chunk: in the basis of the discrete cosine transform over time the constant component has
a larger deviation than the others. Log-probabilities are given per action, by the chain rule: of action t given those
before it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import idct
from torch import Tensor


class ChunkNoise:
    """Sampling and log-probability of a chunk: Gaussian around a mean (B, T, 6), Bernoulli for the gripper (B, T).

    `parts` (T, 7) bool: the numbers of a chunk that have a probability of their own.
    """

    def __init__(
        self, steps: int, offset_std: float = 0.02, ripple_std: float = 0.01, gripper_temperature: float = 0.15
    ) -> None:
        """Sets the deviations at temperature 1.

        Args:
            steps: T, actions in a chunk.
            offset_std: standard deviation of the offset common to all actions, in normalised velocity.
            ripple_std: standard deviation of each other cosine component, spread over the chunk.
            gripper_temperature: the gripper's logit is divided by it.
        """
        basis = idct(np.eye(steps), axis=0, norm="ortho")
        deviations = np.array([offset_std * math.sqrt(steps)] + [ripple_std] * (steps - 1))
        covariance = (basis * deviations**2) @ basis.T
        self.factor = torch.from_numpy(np.linalg.cholesky(covariance)).float()
        self.offset_std, self.gripper_temperature = offset_std, gripper_temperature
        self.parts = torch.ones(steps, 7, dtype=torch.bool)

    def sample(self, mean: Tensor, gripper: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Actions (B, T, 7) around `mean` (B, T, 6) and gripper logits (B, T), not yet clipped to the action space.

        The temperature scales the Gaussian's deviation and divides the gripper's logit. A clipped action may lie so far
        from a mean outside of the action space that its density is no number any more: whoever acts clips.
        """
        white = torch.randn(mean.shape, generator=generator)
        body = mean + temperature * torch.einsum("ts,bsd->btd", self.factor, white)
        closed = torch.rand(gripper.shape, generator=generator) < self._gripper_probability(gripper, temperature)
        return torch.cat([body, closed[..., None].float()], -1)

    def log_prob(self, mean: Tensor, gripper: Tensor, actions: Tensor, temperature: float) -> Tensor:
        """Log-probability (B, T) of each action given those before it; differentiable in mean and logits."""
        return self.log_prob_parts(mean, gripper, actions, temperature).sum(-1)

    def log_prob_parts(self, mean: Tensor, gripper: Tensor, actions: Tensor, temperature: float) -> Tensor:
        """The same of each of an action's seven numbers, (B, T, 7); they are independent of each other."""
        factor = self.factor * temperature
        distance = torch.linalg.solve_triangular(factor, actions[..., :6] - mean, upper=False)
        body = -0.5 * distance**2 - (factor.diagonal().log() + 0.5 * math.log(2 * math.pi))[:, None]
        logits = gripper / (self.gripper_temperature * temperature)
        closed = -F.binary_cross_entropy_with_logits(logits, actions[..., 6], reduction="none")
        return torch.cat([body, closed[..., None]], -1)

    def divergence(self, mean: Tensor, other: Tensor, temperature: float) -> Tensor:
        """(B, T, 6): Kullback-Leibler divergence of the Gaussian around `mean` from that around `other`, by part."""
        factor = self.factor * temperature
        return 0.5 * torch.linalg.solve_triangular(factor, mean - other, upper=False) ** 2

    def strayed(self, mean: Tensor, gripper: Tensor, other: Tensor, other_gripper: Tensor) -> Tensor:
        """How far what has no density has moved between two outputs of a policy; a scalar: 0, as all here has one."""
        return mean.new_zeros(())

    def _gripper_probability(self, gripper: Tensor, temperature: float) -> Tensor:
        return (gripper / (self.gripper_temperature * temperature)).sigmoid()


class OffsetNoise(ChunkNoise):
    """One random shift of a chunk's translation, the same for all its actions; all else is as the policy has it.

    To practise by: the density has three numbers a chunk, those that decide where the hand arrives. That of the whole
    chunk has seven an action, most of them without an effect, and a gradient estimated from few rollouts is mostly
    theirs. The log-probability is that of the shift, and stands with the first action.
    """

    def __init__(self, steps: int, offset_std: float = 0.02) -> None:
        """See `ChunkNoise`."""
        super().__init__(steps, offset_std)
        self.parts = torch.zeros(steps, 7, dtype=torch.bool)
        self.parts[0, :3] = True

    def sample(self, mean: Tensor, gripper: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """See `ChunkNoise.sample`."""
        shift = temperature * self.offset_std * torch.randn(len(mean), 1, 3, generator=generator)
        body = torch.cat([mean[..., :3] + shift, mean[..., 3:]], -1)
        return torch.cat([body, (gripper > 0).float()[..., None]], -1)

    def log_prob_parts(self, mean: Tensor, gripper: Tensor, actions: Tensor, temperature: float) -> Tensor:
        """See `ChunkNoise.log_prob_parts`; 0 but for the translation of the first action."""
        std = temperature * self.offset_std
        distance = self._shift(actions[..., :6] - mean) / std
        parts = -0.5 * distance**2 - math.log(std) - 0.5 * math.log(2 * math.pi)
        return F.pad(parts[:, None], (0, 4, 0, mean.shape[1] - 1))

    def divergence(self, mean: Tensor, other: Tensor, temperature: float) -> Tensor:
        """See `ChunkNoise.divergence`."""
        apart = 0.5 * (self._shift(mean - other) / (temperature * self.offset_std)) ** 2
        return F.pad(apart[:, None], (0, 3, 0, mean.shape[1] - 1))

    def strayed(self, mean: Tensor, gripper: Tensor, other: Tensor, other_gripper: Tensor) -> Tensor:
        """See `ChunkNoise.strayed`.

        An update that only watches the shift would let the rest go anywhere: they share a network.
        """
        apart = mean - other
        common = F.pad(self._shift(apart)[:, None], (0, 3))
        return 0.5 * (((apart - common) / self.offset_std) ** 2).mean() + 0.5 * ((gripper - other_gripper) ** 2).mean()

    @staticmethod
    def _shift(difference: Tensor) -> Tensor:
        """(B, 3) of differences (B, T, 6): what their translations have in common."""
        return difference[..., :3].mean(1)
