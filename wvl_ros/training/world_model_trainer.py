"""The training loop's state and its one update."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wvl_ros.errors import ConfigError
from wvl_ros.training import checkpointing
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.slots import Slots, SlotSettings
from wvl_ros.training.tracking import fit_tracking, tracking_errors
from wvl_ros.training.world_model_losses import gripper_loss, image_loss, reward_loss
from wvl_ros.training.world_model_settings import WorldModelTraining, build_model
from wvl_ros.world_model.loading import new_model, read_config, save_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import has_bfloat16

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"


class Trainer:
    """The training loop's state: model, averaged model, optimizer, slots and generator, all on disk after each
    checkpoint.
    """

    def __init__(self, settings: WorldModelTraining, cache: FrameCache, out: Path) -> None:
        self.settings, self.cache, self.out = settings, cache, out
        self.generator = torch.Generator().manual_seed(settings.seed)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = self._saved_model() or build_model(settings, cache)
        self.average: WorldModel = copy.deepcopy(self.model).eval()
        self.slots = self._slots()
        self.optimizer: torch.optim.Optimizer
        self.step, self.seconds = 0, 0.0
        self.losses: dict[str, float] = {}
        self.fitted = False

    def prepare(self) -> None:
        """Takes up the state on disk, or fits the servo and starts."""
        path = self.out / STATE_FILE
        resumed = path.is_file()
        if resumed:
            tensors, facts = checkpointing.load_state(path)
            checkpointing.restore_module(self.model, tensors, "model")
            checkpointing.restore_module(self.average, tensors, "average")
        else:
            fit_tracking(self.model.tracking, self.cache, self.generator, self.settings.tracking_effort)
            self.average.tracking.load_state_dict(self.model.tracking.state_dict())
        self.model.tracking.requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, self.settings.learning_rate, weight_decay=self.settings.weight_decay, betas=(0.9, 0.99)
        )
        if resumed:
            checkpointing.restore_optimizer(self.optimizer, tensors)
            self.generator.set_state(tensors["generator"])
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            if facts["fingerprint"] == self.cache.fingerprint:
                self.slots.restore(tensors)
        else:
            self.log("servo", tracking_errors(self.model.tracking, self.cache))

    def checkpoint(self) -> None:
        """Writes the state and the averaged weights."""
        tensors = {
            **checkpointing.module_tensors(self.model, "model"),
            **checkpointing.module_tensors(self.average, "average"),
            **checkpointing.optimizer_tensors(self.optimizer),
            **self.slots.state(),
            "generator": self.generator.get_state(),
        }
        facts = {"step": self.step, "seconds": self.seconds, "fingerprint": self.cache.fingerprint}
        checkpointing.save_state(self.out / STATE_FILE, tensors, facts | {"settings": asdict(self.settings)})
        save_world_model(self.average, self.out)

    def update(self, done: float) -> None:
        """One update; `done` is the share of the run that is behind."""
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (self.step + 1) / settings.warmup)
        rate *= settings.final_share + (1 - settings.final_share) * (1 - done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        slots, cache = self.slots, self.cache
        slots.refill()
        going_on = slots.going_on(settings.rollout_length if done >= settings.teacher_forcing else 1.0)
        episode, index = slots.episode, slots.index
        after = cache.step(episode, index + 1)
        true = cache.frame(episode, index + 1)
        batch = len(episode)
        draw = torch.rand(batch, generator=self.generator)
        spread = torch.sigmoid(1.2 * torch.randn(batch, generator=self.generator))
        sigma = torch.where(going_on | (draw < settings.full_noise), torch.ones(batch), spread)
        noise = torch.randn(true.shape, generator=self.generator)
        level = sigma[:, None, None, None]
        noisy = ((1 - level) * true + level * noise).contiguous(memory_format=torch.channels_last)
        tokens = self.tokens[episode]
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            out = self.model(
                noisy, sigma, slots.last, slots.first, slots.first_kinematics, slots.kinematics,
                cache.chunk(episode, index), tokens, slots.calibrated,
            )  # fmt: skip
        parts = {
            "image": image_loss(out.frame, true, slots.last, slots.first, settings.change_weight),
            "reward": reward_loss(out.reward, cache.rewards[after], sigma),
            "gripper": gripper_loss(out.kinematics, cache.kinematics[after]),
        }
        loss = parts["image"] + settings.reward_weight * parts["reward"] + settings.gripper_weight * parts["gripper"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._average_weights()
        slots.advance(going_on, out.frame, out.kinematics)
        for name, value in parts.items():
            old = self.losses.get(name, float(value.detach()))
            self.losses[name] = 0.98 * old + 0.02 * float(value.detach())

    @property
    def tokens(self) -> Tensor:
        """Word numbers of every episode of the cache."""
        if not hasattr(self, "_tokens"):
            self._tokens = self.model.instruction.tokens(self.cache.instructions)
        return self._tokens

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        """Adds a line to the log."""
        with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": self.step, "seconds": round(self.seconds, 1), **facts}) + "\n")

    def _average_weights(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)

    def _saved_model(self) -> WorldModel | None:
        """The architecture (and vocabulary) of the run that is resumed: its data may have grown since."""
        if not (self.out / STATE_FILE).is_file():
            return None
        return new_model(read_config(self.out), self.out)

    def _slots(self) -> Slots:
        s, cache = self.settings, self.cache
        weights = torch.ones(len(cache))
        own = cache.calibrated > 0
        if bool(own.any()) and not bool(own.all()):
            weights = torch.where(own, (1 - s.other_rigs) / own.sum(), s.other_rigs / (~own).sum())
        if not bool((cache.frame_count[weights > 0] > 1).any()):
            raise ConfigError(
                "No episode is long enough: the world model needs two frames, that is four control steps."
            )
        slots = SlotSettings(s.batch, s.history_noise, s.start_share, s.end_share, s.uncalibrated_share)
        return Slots(cache, slots, self.generator, weights)
