"""The training run's state and its one update."""

from __future__ import annotations

import copy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from wvl_ros.training import checkpointing, lora
from wvl_ros.training.descent import Descent, Losses
from wvl_ros.training.finder_fit import fit_finder
from wvl_ros.training.grip_fit import fit_grip
from wvl_ros.training.journal import Journal
from wvl_ros.training.misnaming import Misnaming
from wvl_ros.training.outcome_fit import fit_outcome
from wvl_ros.training.physics_fit import fit_physics
from wvl_ros.training.posture import fit_posture
from wvl_ros.training.processes import Processes
from wvl_ros.training.slots import Slots, SlotSettings
from wvl_ros.training.tracking import fit_others, fit_tracking, tracking_errors
from wvl_ros.training.world_model_data import TrainingData
from wvl_ros.training.world_model_losses import image_loss, reward_loss
from wvl_ros.training.world_model_settings import WorldModelTraining, build_model, with_words
from wvl_ros.world_model.kinematics import GRIPPER
from wvl_ros.world_model.loading import new_model, read_config, save_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import has_bfloat16

STATE_FILE = "state.safetensors"
_OUTCOME_FRESH = 1500  # updates of the reward head's part that sees frames alone, before a fresh model
_GRIP = 1000  # updates of the grip, before a fresh model
_FINE_TUNED = 0.15  # share of them before a fine-tune
_APART = ("tracking", "posture", "grip", "finder", "physics")  # fitted beforehand, by themselves
LAST_FOLDER = "last"  # the last weights; the run's folder itself has the best


class Trainer:
    """The training run's state: model, averaged model, optimizer, slots and generator, all on disk after each
    checkpoint.

    Args:
        start: the model to fine-tune; None begins with fresh weights.
        lora_rank: of the adapter that is trained instead of the weights; 0 for none.
    """

    def __init__(
        self,
        settings: WorldModelTraining,
        data: TrainingData,
        out: Path,
        *,
        start: WorldModel | None = None,
        lora_rank: int = 0,
        processes: Processes | None = None,
    ) -> None:
        self.settings, self.data, self.cache, self.out = settings, data, data.cache, out
        self.processes = processes or Processes()
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.fresh = start is None
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            if start is not None and not lora_rank:
                start = with_words(start, data.cache.instructions)
            self.model: WorldModel = self._saved_model() or start or build_model(settings, data.cache)
            self.adapter: Any = lora.add_lora(self.model, lora_rank) if lora_rank else None
        self.average_adapter: Any = None
        if self.adapter is None:
            self.average: WorldModel = copy.deepcopy(self.model).eval()
        else:
            self.average_adapter = copy.deepcopy(self.adapter).eval()
            self.average = self.average_adapter.base_model.model
        slots = SlotSettings(*(getattr(settings, f.name) for f in fields(SlotSettings)))
        self.slots = Slots(data.cache, slots, self.generator, data.weights(settings), self.processes)
        self.labelled = data.cache.labelled
        self.joint = bool(self.model.config["joint_reward"])
        self.journal: Journal
        self.step, self.seconds = 0, 0.0
        self.losses = Losses()
        self.validations: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Takes up the state on disk, or fits what is fitted by itself and starts."""
        path = self.out / STATE_FILE
        resumed = path.is_file()
        tracking, posture = self.model.tracking, self.model.posture
        if resumed:
            tensors, facts = checkpointing.load_state(path)
            checkpointing.restore_module(self.model, tensors, "model")
            checkpointing.restore_module(self.average, tensors, "average")
        else:
            effort, fitted = self.settings.tracking_effort, {}
            if self.fresh:
                fit_tracking(tracking, self.data.own, self.generator, effort)
                samples = self.data.posture_samples(str(self.model.config["rig"]))
                if samples is not None:
                    fitted = fit_posture(posture, *samples, self.generator, max(1, round(1500 * effort)))
            else:
                fit_others(tracking, self.data.own, self.generator)
            if self.adapter is None:
                updates = round(_GRIP * effort * (1 if self.fresh else _FINE_TUNED))
                fitted |= fit_grip(self.model, self.cache, self.generator, updates)
            if self.fresh:
                fitted |= fit_physics(self.model, self.data.motions, self.generator, effort)
                fitted |= fit_finder(self.model, self.cache, self.generator, effort)
                fitted |= self._fit_outcome(round(_OUTCOME_FRESH * effort))
            self.processes.copy_from_main(self.model)
            for name in (*_APART, "reward_head"):
                getattr(self.average, name).load_state_dict(getattr(self.model, name).state_dict())
        for name in _APART:
            part = getattr(self.model, name)
            part.requires_grad_(False).zero_grad(set_to_none=True)
        if not self.joint:
            self.model.reward_head.requires_grad_(False)  # it is fitted after the run
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.descent = Descent(self.settings, trained, self.processes, self.out)
        if resumed:
            checkpointing.restore_optimizer(self.descent.optimizer, tensors)
            self.generator.set_state(tensors["generator"])
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            self.validations = list(facts.get("validations", []))
            if facts["fingerprint"] == self.cache.fingerprint and facts["settings"]["batch"] == self.settings.batch:
                self.slots.restore(tensors)
        self.journal = Journal(self.out, self.step, writes=self.processes.main)
        if not resumed:
            self.log("servo", tracking_errors(tracking, self.data.own) | fitted)
            self.checkpoint()  # these fits take minutes

    def _fit_outcome(self, updates: int) -> dict[str, float]:
        network, patch = self.model.reward_head.outcome, int(self.model.config["patch"])
        misnaming = Misnaming(self.settings.opposites)
        found = fit_outcome(network, self.cache, patch, updates, self.generator, misnaming=misnaming)
        network.train()
        return {f"outcome_{name}": value for name, value in found.items()}

    def checkpoint(self) -> None:
        """Writes the state and the averaged weights; every process must call it."""
        slots = self.slots.state()
        if self.processes.main:
            tensors = {
                **checkpointing.module_tensors(self.model, "model"),
                **checkpointing.module_tensors(self.average, "average"),
                **checkpointing.optimizer_tensors(self.descent.optimizer),
                **slots,
                "generator": self.generator.get_state(),
            }
            facts = {"step": self.step, "seconds": self.seconds, "fingerprint": self.cache.fingerprint}
            facts |= {"settings": asdict(self.settings), "validations": self.validations}
            self.save(self.out / LAST_FOLDER)
            checkpointing.save_state(self.out / STATE_FILE, tensors, facts)
        self.processes.wait()

    def save(self, folder: Path) -> None:
        """Writes the averaged weights as a checkpoint that can be loaded, an adapter merged and besides."""
        if self.adapter is None:
            save_world_model(self.average, folder)
            return
        save_world_model(lora.merged(self.average_adapter), folder)
        lora.save_adapter(self.average_adapter, folder / lora.ADAPTER_FOLDER)

    def update(self, done: float) -> None:
        """One update; `done` is the share of the run that is behind.

        Raises:
            ConfigError: the loss is not a number any more; the weights are as before.
        """
        settings, slots, cache, own = self.settings, self.slots, self.cache, self.slots.rows
        slots.refill()
        going_on = slots.going_on(settings.frames_alone(done))
        batch = settings.batch
        draw = torch.rand(batch, generator=self.generator)
        spread = torch.sigmoid(1.2 * torch.randn(batch, generator=self.generator))
        sigma = torch.where(going_on | (draw < settings.full_noise), torch.ones(batch), spread)[own]
        noise = torch.randn(batch, *slots.last.shape[1:], generator=self.generator)[own]
        episode, index, wording = slots.episode[own], slots.index[own], slots.wording[own]
        after = cache.step(episode, index + 1)
        true, gripper = cache.frame(episode, index + 1), cache.kinematics[after, GRIPPER : GRIPPER + 1]
        next_things = cache.things_at(episode, after) * (slots.calibrated[own] != 0)[:, None]
        last, first = slots.last[own], slots.first[own]
        level = sigma[:, None, None, None]
        noisy = ((1 - level) * true + level * noise).contiguous(memory_format=torch.channels_last)
        exact = settings.bfloat16 is False or (settings.bfloat16 is None and not has_bfloat16())
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            tokens = self.model.instruction.tokens(slots.names.told(episode, wording))
            start = (slots.first_kinematics[own], tokens, slots.calibrated[own], slots.first_things[own])
            context = self.model.context(first, *start)
            chunk, things = cache.chunk(episode, index), slots.things[own]
            known = (things, gripper, next_things)
            out = self.model(noisy, sigma, last, slots.previous[own], slots.kinematics[own], chunk, context, *known)
        parts = {
            "image": image_loss(out.frame, true, last, first, settings.change_weight),
            "reward": reward_loss(out.reward, cache.rewards[after] * (wording == 0), sigma, self.labelled[episode]),
        }
        loss = parts["image"]
        if self.joint:
            loss = loss + settings.reward_weight * parts["reward"]
        self.descent.start()
        loss.backward()
        self.descent.finish(self.step, done)
        self.step += 1
        self._average_weights()
        slots.advance(going_on, out.frame, out.kinematics, out.things)
        self.losses.add({name: float(value.detach()) for name, value in parts.items()}, self.processes)

    @property
    def rate(self) -> float:
        """The learning rate of the last update."""
        return self.descent.rate

    def _average_weights(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        """Adds a line to the log."""
        self.journal.add(kind, self.step, self.seconds, facts)

    def _saved_model(self) -> WorldModel | None:
        """The architecture (and vocabulary) of the run that is resumed: its data may have grown since."""
        if not (self.out / STATE_FILE).is_file():
            return None
        folder = self.out / LAST_FOLDER if (self.out / LAST_FOLDER).is_dir() else self.out
        return new_model(read_config(folder), folder)
