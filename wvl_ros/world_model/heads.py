"""Next state and reward of every frame, from the features and the denoised latents of a video diffusion network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wvl_ros.world_model.kinematics import STATE_DIM

# A usual change of the state's ten numbers within one call: m, the hand's axes, gripper.
STATE_SCALE = (0.02,) * 3 + (0.05,) * 6 + (0.3,)
UNLIKELY = -4.0  # logit of success that a fresh head starts from


class FrameOutput(NamedTuple):
    """Of T frames: `reward` logits (B, T) and `state` (B, T, 10), see `Kinematics.state`. Both float32."""

    reward: Tensor
    state: Tensor


class FrameHeads(nn.Module):
    """Reward logit and state of each frame.

    Every view is pooled by itself (mean and maximum), as success shows in a few pixels of one camera. The state is the
    one that the kinematics foresee, plus a learned correction: what only the images tell, such as a gripper that an
    object keeps open. A fresh head corrects nothing and thinks success unlikely.

    Args:
        channels: of the features. latent_channels: of the latents. views: stacked on the height of both.
        frames_per_latent: frames that one latent frame stands for. width: of the hidden layers.
    """

    def __init__(
        self, channels: int, latent_channels: int, *, views: int = 3, frames_per_latent: int = 1, width: int = 256
    ) -> None:
        super().__init__()
        self.views, self.frames_per_latent = views, frames_per_latent
        self.reduce = nn.Conv2d(channels + latent_channels, width // 2, 1)
        known = frames_per_latent * STATE_DIM
        self.out = nn.Sequential(
            nn.Linear(views * width + known, width), nn.SiLU(), nn.Linear(width, frames_per_latent * (1 + STATE_DIM))
        )
        self.register_buffer("scale", torch.tensor(STATE_SCALE), persistent=False)
        self.reset()

    def reset(self) -> None:
        """The state of a fresh head."""
        last = self.out[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.bias[: self.frames_per_latent] = UNLIKELY

    def forward(self, features: Tensor, latents: Tensor, foreseen: Tensor) -> FrameOutput:
        """
        Args:
            features: (B, L, C, h, w) of L latent frames. latents: (B, L, c, H, W), denoised.
            foreseen: (B, T, 10) states by kinematics, T = L * frames_per_latent.
        """
        batch, frames = features.shape[:2]
        dtype = self.reduce.weight.dtype
        x = features.flatten(0, 1).to(dtype)
        z = nn.functional.adaptive_avg_pool2d(latents.flatten(0, 1).float(), (x.shape[-2], x.shape[-1])).to(dtype)
        x = nn.functional.silu(self.reduce(torch.cat([x, z], 1)))
        x = x.unflatten(2, (self.views, -1))
        pooled = torch.cat([x.mean((3, 4)), x.amax((3, 4))], 1).flatten(1)
        known = foreseen.reshape(batch * frames, -1).to(dtype)
        out = self.out(torch.cat([pooled, known], 1)).float()
        reward, change = out.split([self.frames_per_latent, self.frames_per_latent * STATE_DIM], 1)
        scale = self.get_buffer("scale").float()
        state = foreseen.float() + change.reshape(foreseen.shape) * scale
        return FrameOutput(reward.reshape(batch, -1), state)


class Truth(NamedTuple):
    """What the heads learn from, of F new frames: `foreseen`, `state` (B, F, 10), `reward` (B, F) 0 or 1, and
    `known` (B, F), 1 where a frame has labels: frames after the end of an episode have none.
    """

    foreseen: Tensor
    state: Tensor
    reward: Tensor
    known: Tensor


def head_losses(out: FrameOutput, truth: Truth, sigma: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of reward and state, mean over the frames with labels, each weighted by 1 / (1 + sigma^2).

    At high noise the latents hold nothing to judge by; so World-VLA-Loop weighs its reward loss by the noise level
    `sigma` (B,). Cross-entropy in place of its squared error: the probability is to be calibrated.
    """
    weight = truth.known.float() / (1 + sigma.float()[:, None] ** 2)
    total = truth.known.float().sum().clamp(min=1)
    reward = nn.functional.binary_cross_entropy_with_logits(out.reward, truth.reward.float(), reduction="none")
    state = nn.functional.smooth_l1_loss(out.state / scale, truth.state.float() / scale, reduction="none").mean(-1)
    return (reward * weight).sum() / total, (state * weight).sum() / total


class FeatureTap:
    """Keeps what a layer was last given: the features that its last layer turns into an image."""

    def __init__(self, layer: nn.Module) -> None:
        self._features: Tensor | None = None
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    def put(self, features: Tensor) -> None:
        """Gives back what was taken: a later pass was not the one that counts."""
        self._features = features

    def take(self) -> Tensor:
        """The features of the last pass, once."""
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("no pass of the network has been made since the features were taken")
        return features
