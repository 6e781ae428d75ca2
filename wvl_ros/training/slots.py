"""Free push-forward: a training batch whose slots are running rollouts.

The training pass's own prediction becomes the slot's next history frame, so the model learns to go on from its own
frames at no extra cost. A slot ends at random (on average after `rollout_length` frames) or with its episode and starts
anew at a
true frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Misnaming, Wordings
from wvl_ros.training.processes import Processes
from wvl_ros.world_model.things import COLUMNS

_PLACES = ("episode", "index", "wording", "ended", "calibrated")  # known to every process
_HISTORY = (
    "last",
    "previous",
    "first",
    "kinematics",
    "first_kinematics",
    "things",
    "first_things",
)  # of a process' own rows


@dataclass
class SlotSettings:
    """How slots start and end. See `WorldModelTraining` for the meaning of each."""

    batch: int
    history_noise: float
    start_share: float
    end_share: float
    uncalibrated_share: float
    misnamed_share: float
    opposites: list[list[str]]


class Slots:
    """B slots over the episodes of a cache; a process has the histories of its own rows only.

    Attributes:
        rows: the slots that this process computes.
        episode, index: (B,) where a slot is: its last frame is frame `index` of `episode`, true or imagined.
        names, wording: what episodes may be told by, and which of it a slot is (B,), see `Wordings`.
        last, previous, first: (B, C, G, G) frames: the last two and the rollout's first.
        kinematics, first_kinematics: packed (B, 39). things, first_things: packed (B, 100). calibrated: (B,).
    """

    def __init__(
        self,
        cache: FrameCache,
        settings: SlotSettings,
        generator: torch.Generator,
        weights: Tensor,
        processes: Processes | None = None,
    ) -> None:
        """`weights` (E,): how often an episode is drawn, relative to the others; those without a second frame never
        are.
        """
        batch = settings.batch
        self.cache, self.settings, self.generator = cache, settings, generator
        self.processes = processes or Processes()
        self.rows = self.processes.share(batch)
        self.names = Wordings(
            cache.instructions, cache.outcomes, Misnaming(settings.opposites), settings.misnamed_share
        )
        self.weights = torch.where(cache.frame_count > 1, weights, torch.zeros_like(weights)).double()
        grid, channels = cache.frames.shape[1], cache.frames.shape[3]
        self.episode = torch.zeros(batch, dtype=torch.long)
        self.index = torch.zeros(batch, dtype=torch.long)
        self.wording = torch.zeros(batch, dtype=torch.long)
        self.ended = torch.ones(batch, dtype=torch.bool)
        self.last = torch.zeros(batch, channels, grid, grid).contiguous(memory_format=torch.channels_last)
        self.previous = self.last.clone(memory_format=torch.preserve_format)
        self.first = self.last.clone(memory_format=torch.preserve_format)
        self.kinematics = torch.zeros(batch, cache.kinematics.shape[1])
        self.first_kinematics = self.kinematics.clone()
        self.things = torch.zeros(batch, COLUMNS)
        self.first_things = self.things.clone()
        self.calibrated = torch.zeros(batch)

    def refill(self) -> None:
        """Starts every ended slot at a true frame of a random episode."""
        rows = self.ended.nonzero()[:, 0]
        n = len(rows)
        if n == 0:
            return
        cache, settings = self.cache, self.settings
        episode = torch.multinomial(self.weights, n, replacement=True, generator=self.generator)
        transitions = cache.frame_count[episode] - 1
        index = (self._uniform(n) * transitions).long().clamp(max=transitions - 1)
        draw = self._uniform(n)
        index = torch.where(draw < settings.start_share, torch.zeros_like(index), index)
        late = transitions - 1 - (self._uniform(n) * 4).long()
        index = torch.where(draw > 1 - settings.end_share, late.clamp(min=0), index)
        # The anchor is mostly the episode's first frame, sometimes a later one (a rollout may start anywhere).
        anchor = torch.where(self._uniform(n) < 0.7, torch.zeros_like(index), (self._uniform(n) * (index + 1)).long())
        noise = settings.history_noise * self._uniform(n) * (self._uniform(n) < 0.5)
        # A rollout that starts here has seen no frame before: then it is the same again.
        starts = (index == anchor) | (self._uniform(n) < 0.1)
        before = torch.where(starts, index, index - 1).clamp(min=0)
        own = (rows >= self.rows.start) & (rows < self.rows.stop)
        for name, frames in (("last", index), ("previous", before)):
            mist = torch.randn(n, *self.last.shape[1:], generator=self.generator)  # of all, whoever computes them
            clear = cache.frame(episode[own], frames[own])
            getattr(self, name)[rows[own]] = clear + noise[own, None, None, None] * mist[own]
        self.first[rows[own]] = cache.frame(episode[own], anchor[own])
        self.episode[rows], self.index[rows] = episode, index
        self.wording[rows] = self.names.draw(episode, self.generator)
        known = self._uniform(n) >= settings.uncalibrated_share
        for name, frames in (("", index), ("first_", anchor)):
            step = cache.step(episode, frames)
            getattr(self, f"{name}kinematics")[rows] = cache.kinematics[step]
            getattr(self, f"{name}things")[rows] = cache.things_at(episode, step) * known[:, None]
        self.calibrated[rows] = cache.calibrated[episode] * known
        self.ended[rows] = False

    def going_on(self, rollout_length: float) -> Tensor:
        """(B,) bool: the slots that continue after the coming frame."""
        lasts = self._uniform(len(self.index)) < 1 - 1 / max(1.0, rollout_length)
        return lasts & (self.index + 2 < self.cache.frame_count[self.episode])

    def advance(self, going_on: Tensor, frame: Tensor, kinematics: Tensor, things: Tensor) -> None:
        """Takes over the model's frames, kinematics and things of this process' rows where a slot goes on, ends the
        others.
        """
        goes = going_on[self.rows]
        self.previous = self.last
        # One memory layout always: sums depend on it in their last bits, and a resumed run must equal an unbroken one.
        self.last = self.last.clone(memory_format=torch.channels_last)
        self.last[self.rows] = torch.where(
            goes[:, None, None, None], frame.detach().clamp(-1, 1), self.previous[self.rows]
        )
        for name, value in (("kinematics", kinematics), ("things", things)):
            setattr(self, name, getattr(self, name).clone())
            getattr(self, name)[self.rows] = torch.where(goes[:, None], value.detach(), getattr(self, name)[self.rows])
        self.index = torch.where(going_on, self.index + 1, self.index)
        self.ended = ~going_on

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs; every process must call it."""
        history = {f"slots.{name}": self.processes.gather(getattr(self, name)[self.rows]) for name in _HISTORY}
        return history | {f"slots.{name}": getattr(self, name) for name in _PLACES}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        for name in (*_PLACES, *_HISTORY):
            value = tensors[f"slots.{name}"]
            setattr(self, name, value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value)

    def _uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator)
