"""Training windows of the large world models, cut from cached latents as their rollouts will see them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.latent_cache import WINDOW_STRIDE, latents, row_shape
from wvl_ros.world_model import poses
from wvl_ros.world_model.chunks import Arm
from wvl_ros.world_model.heads import Truth


class Windows:
    """Windows of a cache of `open_latents`, for `svd.losses.loss` or `cosmos.losses.loss`.

    Args:
        model: an `SVDWorldModel` or a `CosmosWorldModel` whose servo is fitted. weights: (E,) how often an episode is
            drawn.
    """

    def __init__(self, model: Any, cache: FrameCache, weights: Tensor) -> None:
        self.model, self.cache, self.weights = model, cache, weights.double()
        self.in_time = hasattr(model, "transformer")  # cosmos
        self.new = int(model.frames_per_call)
        self.labelled = cache.labelled
        self._arm = Arm(model.tracking)
        self._lengths = (cache.step_count - 1) // cache.actions_per_frame + 1  # frames

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3): episode, present frame, and the frame at which the rollout is taken to have begun."""
        episode = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        length = self._lengths[episode]
        chance = torch.rand(count, 2, generator=generator)
        if self.in_time:
            windows = self.cache.frame_count[episode]
            present = WINDOW_STRIDE * torch.minimum((chance[:, 0] * windows).long(), windows - 1)
            return torch.stack([episode, present, torch.zeros_like(present)], 1)
        starts = (length - self.new).clamp(min=1)
        present = torch.minimum((chance[:, 0] * starts).long(), starts - 1)
        calls = present // self.new + 1
        begun = present - self.new * torch.minimum((chance[:, 1] * calls).long(), calls - 1)
        return torch.stack([episode, present, begun], 1)

    def batch(self, window: Tensor) -> Any:
        """A batch of one, from a row of `draw`; on the model's device."""
        episode, present, begun = (int(n) for n in window)
        ahead = torch.arange(present + 1, present + 1 + self.new)
        text = self.model.embed([self.cache.instructions[episode]])
        if self.in_time:
            from wvl_ros.world_model.cosmos.losses import Batch as CosmosBatch

            row = self.cache.frame_start[episode] + present // WINDOW_STRIDE
            now = self._kinematics(episode, torch.tensor([present]))
            told = torch.cat([poses.measured_pose(now), poses.commanded_pose(self._kinematics(episode, ahead))])
            device = self.model.device
            return CosmosBatch(
                latents(self.cache, row[None], row_shape(self.model)).to(device),
                told[None].to(device),
                poses.state_of(now).to(device),
                text,
                self._truth(episode, present),
            )
        from wvl_ros.world_model.svd.losses import Batch

        past = [begun if i == 0 else max(begun, present + (i + 1) * self.new) for i in self.model.config["history"]]
        seen = torch.tensor([*past, present])
        frames = torch.cat([seen, ahead]).clamp(max=int(self._lengths[episode]) - 1)
        rows = self.cache.frame_start[episode] + frames
        told = torch.cat(
            [
                poses.measured_pose(self._kinematics(episode, seen)),
                poses.commanded_pose(self._kinematics(episode, ahead)),
            ]
        )
        pictures = latents(self.cache, rows, row_shape(self.model))[None]
        device = self.model.device
        return Batch(pictures.to(device), told[None].to(device), text, self._truth(episode, present))

    def _kinematics(self, episode: int, frames: Tensor) -> Tensor:
        """Recorded, packed (n, 39); after the end those of the last frame."""
        frames = frames.clamp(max=int(self._lengths[episode]) - 1)
        return self.cache.kinematics[self.cache.step(torch.full_like(frames, episode), frames)]

    def _truth(self, episode: int, present: int) -> Truth:
        """Of the new frames: what the servo foresees, what was measured, and the reward where it is known."""
        last = int(self._lengths[episode]) - 1
        frames = torch.arange(present + 1, present + 1 + self.new)
        at = self.cache.step(torch.tensor(episode), torch.tensor(present))
        every, calibrated = self.cache.actions_per_frame, self.cache.calibrated[episode][None]
        path, arm = [], self.cache.kinematics[at][None]
        for frame in range(self.new):
            if present + frame < last:
                actions = self.cache.actions[at + frame * every : at + (frame + 1) * every][None]
                arm = self._arm.move(arm, actions, calibrated)[0].pack()
            path.append(arm)
        inside = frames <= last
        steps = self.cache.step(torch.full_like(frames, episode), frames.clamp(max=last))
        truth = Truth(
            foreseen=poses.state_of(torch.cat(path)).detach()[None],
            state=poses.state_of(self.cache.kinematics[steps])[None],
            reward=self.cache.rewards[steps][None],
            known=(inside * self.labelled[episode])[None],
        )
        return Truth(*(part.to(self.model.device) for part in truth))
