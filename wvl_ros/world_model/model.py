"""The world model: last and first frame, kinematics, three commanded poses and an instruction -> next frame and its
reward.

One network predicts three views together at 5 Hz, each frame from three control steps (15 Hz) of absolute commanded
poses, and from the same features the probability that the frame is a success state. Diffusion on a linear path: the
noisy next
frame is (1 - sigma) * frame + sigma * noise, the network predicts the clean frame; one step from sigma = 1 is the
default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from wvl_ros.errors import ConfigError
from wvl_ros.world_model.blocks import UNet
from wvl_ros.world_model.geometry import MAPS_PER_VIEW, CameraGeometry
from wvl_ros.world_model.instruction import InstructionEncoder
from wvl_ros.world_model.kinematics import STATE_DIM, Kinematics, Tracking
from wvl_ros.world_model.patches import VIEWS

_STATE_SCALE = (0.05,) * 3 + (0.15,) * 6 + (0.3,)  # a usual change in one frame


@dataclass
class WorldModelOutput(BaseOutput):
    """Of one frame: `frame` float32 (B, C, G, G) in -1..1 (clean), `reward` float32 (B,) logit, `kinematics` packed (B,
    39).
    """

    frame: Tensor
    reward: Tensor
    kinematics: Tensor


class WorldModel(ModelMixin, ConfigMixin):
    """The small world model (about 3 M parameters at 64 channels).

    Args:
        image_size: pixels along a side of a view as the model sees it. patch: pixels along a side of a patch.
        channels: width of the U-Net at its finest scale. condition_dim, instruction_dim: sizes of the conditioning
            vectors.
        actions_per_frame: control steps a frame.
        vocabulary: words of instructions known.
        cameras: calibration of each of the three views or None, see `CameraGeometry`. rig: name of what they were
            calibrated on.
        max_linear, max_rotation: the longest command in one control step, m and rad. lowest_tcp: m, or None, see
            `Tracking`.
        success_threshold, success_frames: success is a reward probability above the threshold for so many frames in a
            row.

    Raises:
        ConfigError: sizes that do not fit together.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        patch: int = 4,
        channels: int = 64,
        condition_dim: int = 160,
        instruction_dim: int = 48,
        actions_per_frame: int = 3,
        vocabulary: Sequence[str] = (),
        cameras: Sequence[Mapping[str, Any] | None] = (None, None, None),
        rig: str = "",
        max_linear: float = 0.075,
        max_rotation: float = 0.15,
        lowest_tcp: float | None = None,
        success_threshold: float = 0.5,
        success_frames: int = 1,
    ) -> None:
        super().__init__()
        grid = image_size // patch
        if image_size % patch or grid % 4:
            raise ConfigError(f"image_size {image_size} must be a multiple of 4 patches of {patch} pixels.")
        if len(cameras) != VIEWS:
            raise ConfigError(f"The world model has {VIEWS} views, but {len(cameras)} camera calibrations are given.")
        if channels % 8 or actions_per_frame < 1:
            raise ConfigError("channels must be a multiple of 8 and actions_per_frame at least 1.")
        self.grid, self.view_channels = grid, 3 * patch * patch
        self.frame_channels = VIEWS * self.view_channels
        self.tracking = Tracking(max_linear, max_rotation, lowest_tcp)
        self.geometry = CameraGeometry(list(cameras), grid, image_size)
        self.instruction = InstructionEncoder(vocabulary, instruction_dim)
        self.register_buffer("state_scale", torch.tensor(_STATE_SCALE), persistent=False)
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(4), persistent=False)
        axis = torch.linspace(-1, 1, grid)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("coordinates", torch.stack([x, y])[None], persistent=False)

        facts = 2 * STATE_DIM + 14 + actions_per_frame * STATE_DIM + 2 * 12 * 4 + 2
        self.condition = nn.Sequential(
            nn.Linear(facts + instruction_dim, condition_dim),
            nn.SiLU(),
            nn.Linear(condition_dim, condition_dim),
            nn.SiLU(),
        )
        inputs = 3 * self.frame_channels + 2 * self.view_channels + VIEWS * 2 * MAPS_PER_VIEW + 2
        self.unet = UNet(inputs, channels, condition_dim)
        self.to_frame = nn.Conv2d(channels, self.frame_channels, 3, padding=1)
        self.to_masks = nn.Conv2d(channels, patch * patch * (3 + 3 + 5), 1)
        wide = 2 * channels
        self.to_gripper = nn.Linear(2 * wide, 1)
        self.summary_half, self.summary_full = nn.Conv2d(wide, 24, 1), nn.Conv2d(channels, 12, 1)
        features = 2 * wide + 24 * (grid // 2) ** 2 + 12 * grid**2 + 3 * STATE_DIM + instruction_dim
        self.reward_head = nn.Sequential(
            nn.Linear(features, 160), nn.SiLU(), nn.Linear(160, 96), nn.SiLU(), nn.Linear(96, 1)
        )
        for layer in (self.to_frame, self.to_masks, self.to_gripper):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        # At first, copy the last frame: the second choice of each view's softmax.
        assert self.to_masks.bias is not None
        self.to_masks.bias.data.view(-1, patch * patch)[[1, 4, 7]] = 1.0
        # nn.Module.to: the one of diffusers imports peft and transformers (seconds).
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def move(self, kinematics: Tensor, actions: Tensor, calibrated: Tensor) -> tuple[Kinematics, Tensor]:
        """The arm alone, from packed kinematics (B, 39) under actions (B, K, 7); `calibrated` (B,) as in `forward`.

        Returns:
            The kinematics after them, and the commanded states (B, K, 10) on the way.
        """
        k = Kinematics.unpack(kinematics)
        commanded = []
        for i in range(actions.shape[1]):
            k = self.tracking(k, actions[:, i], calibrated)
            commanded.append(k.commanded_state())
        return k, torch.stack(commanded, 1)

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        last: Tensor,
        first: Tensor,
        first_kinematics: Tensor,
        kinematics: Tensor,
        actions: Tensor,
        instruction: Tensor,
        calibrated: Tensor,
    ) -> WorldModelOutput:
        """One denoising pass.

        Args:
            noisy: (B, C, G, G) the next frame at noise level `sigma` (B,), 0..1. last, first: frames before.
            first_kinematics, kinematics: packed (B, 39), of the first and of the last frame.
            actions: (B, K, 7) absolute flange poses and gripper commands, K = actions_per_frame.
            instruction: (B, words) of `self.instruction.tokens`.
            calibrated: (B,) 1 where the images come from the calibrated cameras, else 0.
        """
        with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):
            now = Kinematics.unpack(kinematics.float())
            then, commanded = self.move(kinematics.float(), actions.float(), calibrated)
            now_state, then_state = now.state(), then.state()
            facts = self._facts(now, now_state, then_state, commanded, sigma, calibrated)
            warped = self._warped(last, first, first_kinematics.float(), now, then, calibrated)
            maps = torch.cat([self.geometry.maps(now), self.geometry.maps(then)], 2).flatten(1, 2)
            maps = maps * calibrated[:, None, None, None]
        text = self.instruction(instruction)
        condition = self.condition(torch.cat([facts, text.float()], 1))
        place = self.get_buffer("coordinates").expand(len(noisy), -1, -1, -1)
        full, half = self.unet(_stack([noisy, last, first, warped, maps, place]), condition)

        frame = self._compose(self.to_frame(full), self.to_masks(full), last, first, warped)
        pooled = torch.cat([half.amax((2, 3)), half.mean((2, 3))], 1)
        gripper = then.gripper + 0.3 * self.to_gripper(pooled).float()
        gripper = gripper + (gripper.clamp(0.0, 1.0) - gripper).detach()  # limited, but the gradient passes
        after = then._replace(gripper=gripper)
        after_state = after.state().detach()
        seen = [pooled, self.summary_half(half).flatten(1), self.summary_full(full).flatten(1), text]
        known = [now_state, after_state, (after_state - now_state) / self.get_buffer("state_scale")]
        reward = self.reward_head(torch.cat([*seen, *known], 1))[:, 0]
        return WorldModelOutput(frame=frame, reward=reward.float(), kinematics=after.pack())

    def _facts(
        self, now: Kinematics, state: Tensor, then: Tensor, commanded: Tensor, sigma: Tensor, calibrated: Tensor
    ) -> Tensor:
        scale = self.get_buffer("state_scale")
        motion = torch.cat(
            [
                now.velocity / 0.05,
                (now.position - now.commanded_position) / 0.02,
                now.commanded_velocity[:, :3] / 0.05,
                now.gripper_velocity * 10,
                now.gripper_command,
            ],
            1,
        )
        plan = torch.cat([(commanded[..., :9] - state[:, None, :9]) / scale[:9], commanded[..., 9:]], 2).flatten(1)
        angles = torch.cat([state[:, :3], then[:, :3], state[:, 3:6], then[:, 3:6]], 1)[..., None]
        angles = (angles * self.get_buffer("frequencies")).flatten(1)
        change = (then - state) / scale
        return torch.cat(
            [state, change, motion, plan, angles.sin(), angles.cos(), sigma[:, None], calibrated[:, None]], 1
        )

    def _warped(
        self, last: Tensor, first: Tensor, first_k: Tensor, now: Kinematics, then: Kinematics, calibrated: Tensor
    ) -> Tensor:
        """Last and first wrist view as seen from the next pose, (B, 2 * view_channels, G, G)."""
        batch, channels = len(last), self.view_channels
        wrist = torch.cat([last[:, -channels:], first[:, -channels:]]).float()
        start = Kinematics.unpack(first_k)
        taken = Kinematics(*(torch.cat(pair) for pair in zip(now, start, strict=True)))
        seen = Kinematics(*(part.repeat(2, *[1] * (part.dim() - 1)) for part in then))
        image = F.pixel_shuffle(wrist, self.config["patch"])
        moved, inside = self.geometry.warp(image, taken, seen)
        # What one of the two had not in view is taken from the other; what neither had is grey.
        other, inside_other = moved.roll(batch, 0), inside.roll(batch, 0)
        moved = torch.where(inside, moved, torch.where(inside_other, other, torch.zeros_like(moved)))
        warped = F.pixel_unshuffle(moved, self.config["patch"])
        warped = torch.where(calibrated.repeat(2)[:, None, None, None] > 0, warped, wrist)
        return torch.cat([warped[:batch], warped[batch:]], 1)

    def _compose(self, change: Tensor, masks: Tensor, last: Tensor, first: Tensor, warped: Tensor) -> Tensor:
        """Each pixel is a mixture of a new value and copies: of the last and first frame, in the wrist view also warped
        ones.
        """
        batch, grid, n = len(last), self.grid, self.config["patch"] ** 2

        def views(x: Tensor) -> Tensor:
            return x.float().reshape(batch, -1, 3, n, grid, grid)

        old, oldest, moved = views(last), views(first), views(warped)
        new = old + views(change)
        weights = masks.float()
        fixed = weights[:, : 6 * n].reshape(batch, 2, 3, 1, n, grid, grid).softmax(2)
        wrist = weights[:, 6 * n :].reshape(batch, 5, 1, n, grid, grid).softmax(1)
        exterior = fixed[:, :, 0] * new[:, :2] + fixed[:, :, 1] * old[:, :2] + fixed[:, :, 2] * oldest[:, :2]
        choices = (new[:, 2], old[:, 2], oldest[:, 2], moved[:, 0], moved[:, 1])
        hand = sum((wrist[:, i] * choice for i, choice in enumerate(choices)), torch.zeros_like(choices[0]))
        return torch.cat([exterior.reshape(batch, -1, grid, grid), hand.reshape(batch, -1, grid, grid)], 1)


def _stack(parts: list[Tensor]) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return torch.cat([part.to(dtype) for part in parts], 1).contiguous(memory_format=torch.channels_last)
