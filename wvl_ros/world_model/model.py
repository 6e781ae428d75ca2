"""The world model: the frames so far, kinematics, three commanded poses and an instruction -> the next frame and its
reward.

One network draws three views together at 5 Hz, each frame from three control steps (15 Hz) of absolute commanded
poses, and from the same features tells the probability that the frame is a success state. Diffusion on a linear path:
the noisy next frame is (1 - sigma) * frame + sigma * noise, the network predicts the clean frame; one step from
sigma = 1 is the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from wvl_ros.errors import ConfigError
from wvl_ros.world_model import composition
from wvl_ros.world_model.blocks import UNet, zero
from wvl_ros.world_model.composition import Picture
from wvl_ros.world_model.finder import ThingFinder
from wvl_ros.world_model.geometry import MAPS_PER_VIEW, REACH_PER_VIEW, CameraGeometry
from wvl_ros.world_model.grip import GripNetwork, likeliest
from wvl_ros.world_model.instruction import InstructionEncoder
from wvl_ros.world_model.kinematics import STATE_DIM, STATE_SCALE, Kinematics
from wvl_ros.world_model.patches import VIEWS
from wvl_ros.world_model.physics import Physics
from wvl_ros.world_model.posture import MAPS, Posture
from wvl_ros.world_model.reward_head import RewardHead
from wvl_ros.world_model.thing_copies import lay_things
from wvl_ros.world_model.things import Things
from wvl_ros.world_model.tracking import Tracking


@dataclass
class WorldModelOutput(BaseOutput):
    """Of one frame: `frame` float32 (B, C, G, G) in -1..1 (clean), `reward` float32 (B,) logit, packed `kinematics` (B,
    39) and `things` (B, 100), and the `evidence` that the reward was told from.
    """

    frame: Tensor
    reward: Tensor
    kinematics: Tensor
    things: Tensor
    evidence: Evidence


class Evidence(NamedTuple):
    """What the reward head judges, but for its view of the first frame and the instruction: `frame` and `features`
    (B V, ...), the rest (B, ...).
    """

    frame: Tensor
    features: Tensor
    pooled: Tensor
    arm: Tensor

    def select(self, rows: Tensor) -> Evidence:
        """Of some of the rollouts (n,)."""
        views = [part.unflatten(0, (-1, VIEWS))[rows].flatten(0, 1) for part in self[:2]]
        return Evidence(*views, *(part[rows] for part in self[2:]))


class Context(NamedTuple):
    """What does not change inside a rollout: computed once, used for every frame. Batch first, all of it.

    first: the first frame. kinematics (B, 39), things (B, 100): of it, packed. calibrated (B,): 1 where the images come
    from the calibrated cameras, else 0. text (B, instruction_dim), told (B, ...): the instruction as the two parts of
    the reward head read it; what is drawn does not depend on it. seen (B V, ...): the reward head's view of the first
    frame.
    """

    first: Picture
    kinematics: Tensor
    things: Tensor
    calibrated: Tensor
    text: Tensor
    told: Tensor
    seen: Tensor

    def select(self, rows: Tensor) -> Context:
        """Of some of the rollouts (n,)."""
        seen = self.seen.unflatten(0, (-1, VIEWS))[rows].flatten(0, 1)
        kinematics, things, calibrated, text, told = (part[rows] for part in self[1:6])
        return Context(self.first.select(rows), kinematics, things, calibrated, text, told, seen)


class WorldModel(ModelMixin, ConfigMixin):
    """The small world model (about 4 M parameters at 64 channels).

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
        joint_reward: whether the reward head sees the network's features; else it is a classifier of frames alone.

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
        joint_reward: bool = True,
    ) -> None:
        super().__init__()
        grid = image_size // patch
        if image_size % patch or grid % 4 or patch % 2:
            raise ConfigError(f"image_size {image_size} must be a multiple of 4 patches of {patch} pixels.")
        if len(cameras) != VIEWS:
            raise ConfigError(f"The world model has {VIEWS} views, but {len(cameras)} camera calibrations are given.")
        if channels % 8 or actions_per_frame < 1:
            raise ConfigError("channels must be a multiple of 8 and actions_per_frame at least 1.")
        self.grid, self.view_channels = grid, 3 * patch * patch
        self.frame_channels = VIEWS * self.view_channels
        self.tracking = Tracking(max_linear, max_rotation, lowest_tcp)
        self.posture = Posture()
        self.geometry = CameraGeometry(list(cameras), grid, image_size)
        self.instruction = InstructionEncoder(vocabulary, instruction_dim)
        self.register_buffer("state_scale", torch.tensor(STATE_SCALE), persistent=False)
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(4), persistent=False)
        self.register_buffer("places", _places(grid), persistent=False)

        facts = 2 * STATE_DIM + 14 + actions_per_frame * STATE_DIM + 2 * 12 * 4 + 2
        self.condition = nn.Sequential(
            nn.Linear(facts, condition_dim), nn.SiLU(), nn.Linear(condition_dim, condition_dim)
        )
        self.view = nn.Parameter(0.1 * torch.randn(VIEWS, condition_dim))
        outlines = MAPS * (patch // 2) ** 2
        inputs = 8 * self.view_channels + 2 * (MAPS_PER_VIEW + REACH_PER_VIEW) + outlines + 2 + VIEWS + patch * patch
        self.unet = UNet(inputs, channels, condition_dim, VIEWS, grid)
        self.to_frame = nn.Conv2d(channels, self.view_channels, 1)
        self.to_choice = nn.Conv2d(channels, patch * patch * composition.CHOICES, 1)
        self.to_correction = nn.Conv2d(channels, 2, 1)
        self.finder, self.physics = ThingFinder(self.geometry), Physics()
        self.grip = GripNetwork(self.view_channels, grid, actions_per_frame)
        pooled = 2 * 2 * channels * VIEWS
        self.reward_head = RewardHead(
            self.view_channels, channels, pooled, 3 * STATE_DIM, instruction_dim, grid, vocabulary
        )
        for layer in (self.to_frame, self.to_choice, self.to_correction):
            zero(layer)
        # At first, copy the last frame.
        assert self.to_choice.bias is not None
        self.to_choice.bias.data.view(composition.CHOICES, -1)[2] = 1.0
        # nn.Module.to: the one of diffusers imports peft and transformers (seconds).
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def context(
        self,
        first: Tensor,
        kinematics: Tensor,
        instruction: Tensor,
        calibrated: Tensor,
        things: Tensor | None = None,
    ) -> Context:
        """What `forward` needs of a rollout's start: first frame (B, C, G, G), packed kinematics (B, 39), word numbers
        (B, words) of `self.instruction.tokens`, `calibrated` (B,), packed things (B, 100) where they are known; None
        finds them.
        """
        text, told = self.instruction(instruction).float(), self.reward_head.outcome.instruction(instruction).float()
        picture = Picture.of(first, int(self.config["patch"]))
        seen = self.reward_head.first(_as_images(picture.views))
        if things is None:
            things = self.find(picture, kinematics, calibrated)
        return Context(picture, kinematics.float(), things, calibrated.float(), text, told, seen)

    @torch.no_grad()
    def find(self, picture: Picture, kinematics: Tensor, calibrated: Tensor) -> Tensor:
        """The packed things (B, 100) that frames show, taken at packed kinematics (B, 39); none where the cameras are
        not `calibrated` (B,).
        """
        if not all(self.geometry.known) or not bool((calibrated != 0).any()):
            return Things.none(len(kinematics), kinematics.device).pack()
        with torch.autocast(kinematics.device.type, enabled=False):
            things = self.finder.find(picture.images, Kinematics.unpack(kinematics.float()))
        return things._replace(there=things.there * (calibrated != 0)[:, None]).pack()

    def move(self, kinematics: Tensor, actions: Tensor, calibrated: Tensor) -> tuple[Kinematics, Tensor]:
        """The arm alone, from packed kinematics (B, 39) under actions (B, K, 7); `calibrated` (B,) as in `forward`.

        Returns:
            The kinematics after them, and the commanded states (B, K, 10) on the way.
        """
        nothing = Things.none(len(kinematics), kinematics.device).pack()
        k, commanded, _ = self.play(kinematics, nothing, actions, calibrated)
        return k, commanded

    def play(
        self, kinematics: Tensor, things: Tensor, actions: Tensor, calibrated: Tensor
    ) -> tuple[Kinematics, Tensor, Tensor]:
        """`move` among packed things (B, 100) that the arm pushes and holds, and that stop its gripper; and these."""
        k, t = Kinematics.unpack(kinematics), Things.unpack(things)
        some = bool((t.there > 0).any())
        commanded = []
        for i in range(actions.shape[1]):
            then = self.tracking(k, actions[:, i], calibrated)
            commanded.append(then.commanded_state())
            if some:
                t, then = self.physics(k, then, t)
            k = then
        return k, torch.stack(commanded, 1), t.pack()

    def maps(self, k: Kinematics, calibrated: Tensor) -> Tensor:
        """`CameraGeometry.maps` and `reach` of arms as views (B, V, G, G, 8); zeros where `calibrated` (B,) is 0."""
        maps = torch.cat([self.geometry.maps(k), self.geometry.reach(k)], 2)
        return maps.permute(0, 1, 3, 4, 2) * (calibrated != 0)[:, None, None, None, None]

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        last: Tensor,
        previous: Tensor,
        kinematics: Tensor,
        actions: Tensor,
        context: Context,
        things: Tensor | None = None,
        next_gripper: Tensor | None = None,
        next_things: Tensor | None = None,
    ) -> WorldModelOutput:
        """One denoising pass.

        Args:
            noisy: (B, C, G, G) the next frame at noise level `sigma` (B,), 0..1.
            last, previous: the frame before, and the one before that (at a start the same again).
            kinematics: packed (B, 39), of the last frame.
            actions: (B, K, 7) absolute flange poses and gripper commands, K = actions_per_frame.
            context: of the rollouts' starts.
            things: packed (B, 100), of the last frame; None: it is the first.
            next_gripper, next_things: its position (B, 1) and the things in the next frame where they are known, to
                train by; None foresees them.
        """
        patch, calibrated, precision = int(self.config["patch"]), context.calibrated, _precision()
        with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):  # bfloat16 is wrong by half a pixel
            now = Kinematics.unpack(kinematics.float())
            here = context.things if things is None else things
            if next_things is None:
                then, commanded, after = self.play(kinematics.float(), here, actions.float(), calibrated)
            else:
                (then, commanded), after = self.move(kinematics.float(), actions.float(), calibrated), next_things
            seen = Picture.of(last, patch)
            maps_then = self.maps(then, calibrated)
            first_k = Kinematics.unpack(context.kinematics)
            if next_gripper is not None:
                then = then._replace(gripper=next_gripper.float())
            else:
                then = self._stopped(seen, now, then, actions, Things.unpack(here).there)
            now_state, then_state = now.state(), then.state()
            facts = self._facts(now, now_state, then_state, commanded, sigma, calibrated)
            links = [self.posture.links(k, calibrated < 0) for k in (now, then)]
            arms = (self.posture.chain(now, links[0]), self.posture.chain(then, links[1]))
            scenes = [Things.unpack(packed) for packed in (context.things, after)]
            laid = lay_things(self.geometry, context.first.images, first_k, then, *scenes)
            given = composition.copies(
                self.geometry, seen, context.first, first_k, now, then, arms, laid, calibrated, patch
            )
            outlines = self.geometry.silhouettes(*self.posture.segments(then, links[1])).flatten(0, 1)
            outlines = nn.functional.pixel_unshuffle(outlines, patch // 2).unflatten(0, (-1, VIEWS))
            outlines = outlines.permute(0, 1, 3, 4, 2) * (calibrated != 0)[:, None, None, None, None]
            gain = ((1 - sigma) / ((1 - sigma) ** 2 + sigma**2))[:, None, None, None, None]  # of the best linear guess
            old = composition.views(previous) - seen.views
            parts = [composition.views(noisy) * gain, seen.views, old, given.moved, given.first, given.rigid]
            parts += [given.around, self.maps(now, calibrated), maps_then, outlines]
            parts += [self.get_buffer("places").expand(len(noisy), -1, -1, -1, -1), given.laid, given.mask]
            x = _as_images(_side_by_side(parts, precision))
        # Not of the instruction: told it, the network draws what was asked for instead of what the arm does.
        condition = self.condition(facts)[:, None] + self.view
        full, half = self.unet(x, torch.nn.functional.silu(condition).flatten(0, 1))

        change, choice, correction = (
            layer(full).permute(0, 2, 3, 1).unflatten(0, (-1, VIEWS)).float()
            for layer in (self.to_frame, self.to_choice, self.to_correction)
        )
        drawn = composition.compose(given, change, choice, correction, patch)
        pooled = torch.cat([half.amax((2, 3)), half.mean((2, 3))], 1).unflatten(0, (-1, VIEWS)).flatten(1)
        arm = torch.cat([now_state, then_state, (then_state - now_state) / self.get_buffer("state_scale")], 1)
        clean = _as_images(drawn.detach())
        if not self.config["joint_reward"]:
            full, pooled = torch.zeros_like(full), torch.zeros_like(pooled)
        evidence = Evidence(clean, full, pooled, arm)
        reward = self.reward_head(context.seen, *evidence, context.text, context.told)
        return WorldModelOutput(
            frame=composition.frame(drawn), reward=reward, kinematics=then.pack(), things=after, evidence=evidence
        )

    def _stopped(self, seen: Picture, now: Kinematics, then: Kinematics, actions: Tensor, there: Tensor) -> Kinematics:
        """`then`; where no thing is `there` (B, 10), with the gripper where the wrist's view makes it stop."""
        unknown = there.sum(1, keepdim=True) == 0
        if not bool(unknown.any()):
            return then
        gripper = likeliest(self.grip(seen.views[:, 2], now, then, actions[:, :, 6].float()))
        return then._replace(gripper=torch.where(unknown, gripper, then.gripper))

    def judge(self, evidence: Evidence, first: Tensor, instruction: Tensor) -> Tensor:
        """The reward's logits (B,) once more, from evidence, first frames (B, C, G, G) and word numbers (B, words): to
        train the head alone.
        """
        head = self.reward_head
        text, told = self.instruction(instruction).float(), head.outcome.instruction(instruction).float()
        return torch.as_tensor(head(head.first(_as_images(composition.views(first))), *evidence, text, told))

    def judging(self) -> list[nn.Parameter]:
        """The parameters that only the reward depends on."""
        return [*self.instruction.parameters(), *self.reward_head.parameters()]

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


def _places(grid: int) -> Tensor:
    """(V, G, G, 2 + V): where a patch is, -1..1, and of which view."""
    axis = torch.linspace(-1, 1, grid)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    which = torch.eye(VIEWS)[:, None, None].expand(-1, grid, grid, -1)
    return torch.cat([torch.stack([x, y], 2).expand(VIEWS, -1, -1, -1), which], 3)


def _side_by_side(parts: Sequence[Tensor], precision: torch.dtype) -> Tensor:
    """Views (B, V, G, G, K) of several K as one; converted as they are copied, which saves a tenth of a frame."""
    result = parts[0].new_empty(*parts[0].shape[:4], sum(part.shape[4] for part in parts), dtype=precision)
    start = 0
    for part in parts:
        result[..., start : start + part.shape[4]] = part
        start += part.shape[4]
    return result


def _as_images(parts: Tensor) -> Tensor:
    """Views (B, V, G, G, K) as a batch for convolutions (B V, K, G, G), channels last in memory."""
    return parts.flatten(0, 1).permute(0, 3, 1, 2)


def _precision() -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
