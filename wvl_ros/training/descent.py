"""One step of a training run down the averaged gradient: rate by schedule, gradients limited, nonsense refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from wvl_ros.errors import ConfigError
from wvl_ros.training.processes import Processes
from wvl_ros.training.world_model_settings import WorldModelTraining


class Descent:
    """AdamW on the `trained` parameters of a run in the folder `out`. `rate` is the learning rate of the last step."""

    def __init__(
        self, settings: WorldModelTraining, trained: Sequence[nn.Parameter], processes: Processes, out: Path
    ) -> None:
        self.settings, self.trained, self.processes, self.out = settings, list(trained), processes, out
        self.optimizer = torch.optim.AdamW(
            self.trained, settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
        )
        self.rate = 0.0

    def start(self) -> None:
        """Forgets the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def finish(self, step: int, done: float) -> None:
        """Step number `step`, when `done` of the run is behind, along the gradients that all processes have now.

        Raises:
            ConfigError: they are not numbers any more; the weights are as before.
        """
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup)
        self.rate = rate * (settings.final_share + (1 - settings.final_share) * (1 - done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.processes.average_gradients(self.trained)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, 1.0))
        if not math.isfinite(norm):
            raise ConfigError(
                f"Training diverged at update {step}: the loss is not a number any more. The last good checkpoint is "
                f"kept in '{self.out}'; lower the learning rate (now {settings.learning_rate:g}) and run the command "
                "again."
            )
        self.optimizer.step()


class Losses(dict[str, float]):
    """Running means of losses over about fifty updates and all processes."""

    def add(self, losses: dict[str, float], processes: Processes) -> None:
        """Takes in those of an update."""
        names = list(losses)
        sums = processes.sum([losses[name] for name in names])
        for name, total in zip(names, sums, strict=True):
            value = total / processes.count
            self[name] = 0.98 * self.get(name, value) + 0.02 * value
