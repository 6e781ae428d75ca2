"""A vision-language model as a judge: it watches frames of the episode and is asked whether it succeeded (VLAW)."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wvl_ros.rewards.vlm.answer import YesNo
from wvl_ros.rewards.vlm.clip import cut
from wvl_ros.rewards.vlm.model import QwenVL
from wvl_ros.rewards.vlm.settings import VlmSettings
from wvl_ros.sans.episode import Episode

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """What the model says of B episodes.

    Attributes:
        yes: (B,) probability of yes against no. mass: (B,) probability that it says one of the two.
        silent: (B,) where the mass is less than the settings' `least_mass`.
    """

    yes: NDArray[np.float64]
    mass: NDArray[np.float64]
    silent: NDArray[np.bool_]


class VlmJudge:
    """Asks a Qwen-VL model. Success is the probability of yes against no; where it says neither, it abstains.

    Attributes:
        asked, abstained: episodes so far. mass: the sum of their `Answers.mass`.
    """

    name = "vlm"

    def __init__(self, qwen: QwenVL, settings: VlmSettings | None = None) -> None:
        self.qwen, self.settings = qwen, settings or VlmSettings()
        self.threshold = self.settings.threshold
        self.words = YesNo.of(qwen.tokenizer)
        self.asked, self.abstained, self.mass = 0, 0, 0.0

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        threshold: float | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        **changes: Any,
    ) -> VlmJudge:
        """Loads a model and what `judge.json` beside it says, if it is there.

        Args:
            folder: of a Qwen2.5-VL or Qwen3-VL model. threshold: None takes that of the settings.
            device, dtype: see `QwenVL.from_pretrained`. changes: to the settings, see `VlmSettings`.

        Raises:
            CheckpointError: the folder, a file in it or some weights are missing, damaged or of another model.
            ConfigError: no such device or dtype, or an impossible setting.
        """
        folder = Path(folder).expanduser()
        if threshold is not None:
            changes["threshold"] = threshold
        settings = VlmSettings.read(folder).changed(**changes)
        return cls(QwenVL.from_pretrained(folder, device, dtype), settings)

    def save(self, folder: Path) -> None:
        """Writes what `from_pretrained` reads; each file whole or not at all."""
        part = folder / f".judge.{os.getpid()}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            self.qwen.save(part)
            self.settings.write(part)
            for file in part.iterdir():
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def probability(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """See `Judge`; 0 where it abstains.

        Raises:
            EpisodeError: an episode lacks the camera.
        """
        answers = self.answers(episodes)
        self.asked += len(episodes)
        self.abstained += int(answers.silent.sum())
        self.mass += float(answers.mass.sum())
        if answers.silent.any():
            _log.warning(
                "The judge 'vlm' abstains from %d of %d episodes: yes and no together have a probability below %g.",
                answers.silent.sum(), len(episodes), self.settings.least_mass,
            )  # fmt: skip
        return np.where(answers.silent, 0.0, answers.yes)

    @torch.no_grad()
    def answers(self, episodes: Sequence[Episode]) -> Answers:
        """What it says of each episode, abstaining or not."""
        found = []
        for first in range(0, len(episodes), self.settings.batch):
            logits = self.logits(episodes[first : first + self.settings.batch])
            found.append(torch.stack([self.words.probability(logits), self.words.mass(logits)]).double().cpu())
        yes, mass = torch.cat(found, 1).numpy() if found else np.zeros((2, 0))
        return Answers(yes, mass, mass < self.settings.least_mass)

    def logits(self, episodes: Sequence[Episode]) -> Tensor:
        """Of the answer's first token, float32 (B, V), all episodes at once."""
        settings = self.settings
        clips = [cut(episode, settings.cameras, settings.frames) for episode in episodes]
        questions = [settings.asked(episode.instruction) for episode in episodes]
        return self.qwen.logits(self.qwen.inputs(clips, questions, settings.min_pixels, settings.max_pixels))

    def report(self) -> dict[str, Any]:
        """So far: episodes `asked` and `abstained`, `mean_mass` of yes and no together (None before any)."""
        mean = round(self.mass / self.asked, 4) if self.asked else None
        return {"asked": self.asked, "abstained": self.abstained, "mean_mass": mean}
