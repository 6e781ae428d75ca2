"""The training of a large world model: a sample at a time, all weights or LoRA, from published weights."""

from __future__ import annotations

import copy
import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wvl_ros.errors import ConfigError
from wvl_ros.training import checkpointing
from wvl_ros.training.descent import Descent, Losses
from wvl_ros.training.journal import Journal
from wvl_ros.training.large_windows import Windows
from wvl_ros.training.lora import ADAPTER_FOLDER
from wvl_ros.training.processes import Processes
from wvl_ros.training.tracking import fit_others, fit_tracking, tracking_errors
from wvl_ros.training.world_model_data import TrainingData
from wvl_ros.training.world_model_settings import WorldModelTraining
from wvl_ros.training.world_model_trainer import STATE_FILE
from wvl_ros.world_model.large import save_large
from wvl_ros.world_model.lora import add_lora, fuse_lora, save_lora

_FROZEN = ("vae.", "text_encoder.", "tracking.")


class LargeTrainer:
    """As `Trainer`, for an `SVDWorldModel` or a `CosmosWorldModel`.

    What is trained is kept in float32. Samples are computed one after another, each with noise of its own seed, so the
    memory is that of one and the result does not depend on the number of processes.
    """

    def __init__(
        self,
        settings: WorldModelTraining,
        data: TrainingData,
        out: Path,
        *,
        start: Any,
        lora_rank: int = 0,
        processes: Processes | None = None,
    ) -> None:
        self.settings, self.data, self.cache, self.out = settings, data, data.cache, out
        self.processes = processes or Processes()
        self.rows = self.processes.share(settings.batch)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model, self.lora_rank = start, lora_rank
        self.average = start  # no second copy of billions of weights
        kind = "cosmos" if hasattr(start, "transformer") else "svd"
        self._loss = importlib.import_module(f"wvl_ros.world_model.{kind}.losses").loss
        self.step, self.seconds, self.losses = 0, 0.0, Losses()
        self.validations: list[dict[str, Any]] = []
        self.journal: Journal
        self.joint = True

    def prepare(self) -> None:
        """Takes up the state on disk, or fits the servo and starts."""
        model, settings = self.model, self.settings
        torch.nn.Module.float(model.tracking)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            if self.lora_rank:
                add_lora(model, self.lora_rank)
        for name, parameter in model.named_parameters():
            if name.startswith(_FROZEN):
                parameter.requires_grad_(False)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            parameter.data = parameter.data.float()
        (model.transformer if hasattr(model, "transformer") else model.unet).enable_gradient_checkpointing()
        self.descent = Descent(settings, list(self.trained.values()), self.processes, self.out)
        path = self.out / STATE_FILE
        resumed = path.is_file()
        if resumed:
            tensors, facts = checkpointing.load_state(path)
            self.restore(tensors)
            model.tracking.load_state_dict(
                {name.removeprefix("tracking."): t for name, t in tensors.items() if name.startswith("tracking.")}
            )
            checkpointing.restore_optimizer(self.descent.optimizer, tensors)
            self.generator.set_state(tensors["generator"])
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            self.validations = list(facts["validations"])
        else:
            self._fit_servo()
        self.windows = Windows(model, self.cache, self.data.weights(settings))
        self.journal = Journal(self.out, self.step, writes=self.processes.main)
        if not resumed:
            self.log("servo", tracking_errors(copy.deepcopy(model.tracking).cpu(), self.cache))

    def checkpoint(self) -> None:
        """Writes the state, and the adapter where there is one; every process must call it."""
        if self.processes.main:
            tensors = {
                **self.tensors(),
                **{f"tracking.{name}": tensor for name, tensor in self.model.tracking.state_dict().items()},
                **checkpointing.optimizer_tensors(self.descent.optimizer),
                "generator": self.generator.get_state(),
            }
            facts = {"step": self.step, "seconds": self.seconds, "settings": asdict(self.settings)}
            checkpointing.save_state(self.out / STATE_FILE, tensors, facts | {"validations": self.validations})
            if self.lora_rank:
                save_lora(self.model, self.out / ADAPTER_FOLDER)
        self.processes.wait()

    def update(self, done: float) -> None:
        """One update; `done` is the share of the run that is behind. See `Descent.finish` for what it raises."""
        settings, model = self.settings, self.model
        model.train()
        model.vae.eval()
        windows = self.windows.draw(settings.batch, self.generator)
        seeds = torch.randint(2**31, (settings.batch,), generator=self.generator).tolist()
        own = range(self.rows.start, self.rows.stop)
        self.descent.start()
        sums: dict[str, float] = {}
        device = model.device.type
        for i in own:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and settings.bfloat16 is not False):
                parts = self._loss(
                    model,
                    self.windows.batch(windows[i]),
                    reward_weight=settings.reward_weight,
                    state_weight=settings.state_weight,
                    generator=torch.Generator().manual_seed(seeds[i]),
                )
            (parts["loss"] / len(own)).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(own)
        self.descent.finish(self.step, done)
        self.step += 1
        self.losses.add(sums, self.processes)

    @property
    def rate(self) -> float:
        """The learning rate of the last update."""
        return self.descent.rate

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is trained, by name."""
        return {f"trained.{name}": parameter for name, parameter in self.trained.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts back what `tensors` gave.

        Raises:
            ConfigError: the state is of another model, or of another rank of LoRA.
        """
        for name, parameter in self.trained.items():
            saved = tensors.get(f"trained.{name}")
            if saved is None or saved.shape != parameter.shape:
                raise ConfigError(
                    f"The saved training state in '{self.out}' belongs to another model or rank of LoRA; train into "
                    "another folder."
                )
            parameter.data.copy_(saved)

    def save(self, folder: Path) -> None:
        """Writes the model as a checkpoint that can be loaded, an adapter merged into it: the end of the run."""
        if self.lora_rank:
            save_lora(self.model, folder / ADAPTER_FOLDER)
            fuse_lora(self.model)
        save_large(self.model, folder)

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        """Adds a line to the log."""
        self.journal.add(kind, self.step, self.seconds, facts)

    def _fit_servo(self) -> None:
        """Of the rig: the whole servo where the model knows its cameras, else the linear one of other rigs."""
        fitted = copy.deepcopy(self.model.tracking).cpu().requires_grad_(True)
        if bool((self.cache.calibrated > 0).any()):
            fit_tracking(fitted, self.cache, self.generator, self.settings.tracking_effort)
        else:
            fit_others(fitted, self.cache, self.generator)
        self.processes.copy_from_main(fitted)
        self.model.tracking.load_state_dict(fitted.state_dict())
