"""Settings of a training run of the world model, and the fresh model they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.training.frame_cache import KINDS, FrameCache
from wvl_ros.training.misnaming import OPPOSITES, PAIRS, are_pairs
from wvl_ros.training.settings import read_yaml, require
from wvl_ros.world_model.instruction import UNKNOWN, collect_vocabulary
from wvl_ros.world_model.model import WorldModel

DEFAULT_RIG = "tabletop"
_TABLES = ("model", "training")
_SHARES = (
    "teacher_forcing", "full_noise", "start_share", "end_share", "other_rigs", "uncalibrated_share", "final_share",
    "replay_share", "reward_fit_share", "misnamed_share",
)  # fmt: skip


@dataclass
class WorldModelTraining:
    """Settings of a training run.

    Attributes:
        batch: slots. learning_rate: peak, after `warmup` updates, falling in a line to `final_share` of it.
        fine_tune_learning_rate, lora_learning_rate: instead of it, when a run starts from a checkpoint, and with LoRA.
        weight_decay, ema: of AdamW; of the averaged weights that are saved.
        rollout_length, last_rollout_length: frames a slot lives on its own predictions, on average, when that begins
            and at the run's end. teacher_forcing: share of the run without that; a fine-tune has none.
        full_noise: share of fresh slots trained at sigma 1; history_noise: largest noise on half of the true history
            frames.
        start_share, end_share: share of slots that begin at an episode's first frame, or in its last four.
        other_rigs: share of slots on episodes of other rigs than the calibrated one, when there are any.
        uncalibrated_share: share of slots on calibrated episodes that are told that they are not.
        misnamed_share: share of slots on successes whose instruction names something else, so that they are none, and
            of the success states that the reward head is in the end fitted to by such an instruction, too. opposites:
            pairs of words that are exchanged for it.
        replay_share: share of slots on old episodes, when there are any.
        change_weight: extra weight on patches that change. reward_weight, state_weight: of these two losses beside
            the image; the small size fits its state beforehand.
        outcomes, sources: only episodes of these outcomes ('success', 'near_success', 'failure') and by these actors
            ('expert', 'policy', 'teleop'); empty takes all.
        joint_reward: whether the reward head is trained with the network and sees its features; else it is a separate
            classifier of frames, trained after.
        reward_fit_share: share of the run after which the reward head is fitted once more, on the model's own rollouts.
        mirror: whether each episode is learned from twice, once in the mirror, where the rig is its own mirror image
            (small size only). balanced: whether tasks are drawn equally often, and of each task successes and
            near-successes twice as often as failures; else every episode is.
        patience: validations without a gain that end the run; 0 for never.
        checkpoint_seconds, validate_seconds: training time between. validation_episodes: episodes of one validation.
        lora_rank: of the adapter that is trained in place of a checkpoint's weights; 0 for none.
        bfloat16: None asks the processor.
        model: arguments of the model, whatever they are.
    """

    batch: int = 32
    learning_rate: float = 1e-3
    fine_tune_learning_rate: float = 3e-4
    lora_learning_rate: float = 1e-3
    warmup: int = 50
    final_share: float = 0.03
    weight_decay: float = 0.01
    ema: float = 0.995
    rollout_length: float = 1.0
    last_rollout_length: float = 5.0
    teacher_forcing: float = 0.25
    full_noise: float = 0.85
    history_noise: float = 0.06
    start_share: float = 0.05
    end_share: float = 0.05
    other_rigs: float = 0.06
    uncalibrated_share: float = 0.03
    misnamed_share: float = 0.35
    replay_share: float = 0.5
    change_weight: float = 2.0
    reward_weight: float = 0.2
    state_weight: float = 0.1
    outcomes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    joint_reward: bool = True
    reward_fit_share: float = 0.1
    mirror: bool = True
    balanced: bool = True
    patience: int = 0
    seed: int = 0
    checkpoint_seconds: float = 120.0
    validate_seconds: float = 900.0
    validation_episodes: int = 60
    tracking_effort: float = 1.0
    lora_rank: int = 0
    bfloat16: bool | None = None
    opposites: list[list[str]] = field(default_factory=lambda: [list(pair) for pair in OPPOSITES])
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.outcomes, self.sources = (
            [names] if isinstance(names, str) else list(names) for names in (self.outcomes, self.sources)
        )
        of = "The training's"
        require(self, _SHARES, lambda x: 0 <= x <= 1, "a share between 0 and 1", of)
        rates = ("learning_rate", "fine_tune_learning_rate", "lora_learning_rate", "warmup")
        require(self, rates, lambda x: x > 0, "positive", of)
        counts = ("batch", "rollout_length", "last_rollout_length", "validation_episodes")
        require(self, counts, lambda n: n >= 1, "at least 1", of)
        require(self, ("ema",), lambda x: 0 <= x < 1, "in 0..1", of)
        require(self, ("reward_fit_share",), lambda x: x <= 0.9, "at most 0.9", of)
        require(self, ("patience",), lambda n: n >= 0, "0 or more", of)
        require(self, ("opposites",), are_pairs, PAIRS, of)
        unknown = set(self.outcomes) - set(KINDS)
        if unknown:
            raise ConfigError(f"There is no outcome '{min(unknown)}'; outcomes are {', '.join(KINDS)}.")

    def for_fine_tuning(self, lora: bool) -> WorldModelTraining:
        """The same with the learning rate of a fine-tune, which lives on its own predictions from the start."""
        rate = self.lora_learning_rate if lora else self.fine_tune_learning_rate
        return replace(self, learning_rate=rate, teacher_forcing=0.0)

    def frames_alone(self, done: float) -> float:
        """How many frames a slot lives on its own predictions, on average, when `done` of the run is behind."""
        if done < self.teacher_forcing:
            return 1.0
        grown = (done - self.teacher_forcing) / max(1e-9, 1 - self.teacher_forcing)
        return self.rollout_length + grown * (self.last_rollout_length - self.rollout_length)

    @classmethod
    def load(cls, path: Path | None) -> WorldModelTraining:
        """From a YAML file with the tables `model` and `training`; None gives the defaults.

        Raises:
            ConfigError: no such file, not YAML, or an unknown key.
        """
        if path is None:
            return cls()
        tables = read_yaml(path)
        if not isinstance(tables, dict) or not all(isinstance(tables.get(n) or {}, dict) for n in _TABLES):
            raise ConfigError(f"The configuration '{path}' should hold the tables {' and '.join(_TABLES)}.")
        known = {f.name for f in fields(cls)} - {"model"}
        settings = dict(tables.get("training") or {})
        unknown = (set(tables) - set(_TABLES)) | (set(settings) - known)
        if unknown:
            raise ConfigError(
                f"'{path}' has unknown keys: {', '.join(sorted(unknown))}; known are: {', '.join(sorted(known))}."
            )
        try:
            return cls(**settings, model=dict(tables.get("model") or {}))
        except TypeError as error:
            raise ConfigError(f"'{path}' has a setting of the wrong type: {error}.") from error


@dataclass
class Budget:
    """When a run ends: after so many updates, so many minutes of training time, or whichever is first."""

    steps: int | None
    minutes: float | None

    def done(self, step: int, seconds: float) -> float:
        """The share of the run that is behind, 0..1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def without(self, share: float) -> Budget:
        """What is left of the minutes when a share of them goes to something else; updates stay as many."""
        return Budget(self.steps, None if self.minutes is None else self.minutes * (1 - share))


def build_model(settings: WorldModelTraining, cache: FrameCache) -> WorldModel:
    """A fresh model for a cache: its vocabulary, and the cameras and limits of the rig it is told of."""
    from wvl_ros.worlds import droid

    arguments: dict[str, Any] = {
        "vocabulary": collect_vocabulary(cache.instructions),
        "max_linear": droid.MAX_LINEAR_DELTA,
        "max_rotation": droid.MAX_ROTATION_DELTA,
        "joint_reward": settings.joint_reward,
    }
    arguments |= rig_facts(str(settings.model.get("rig", DEFAULT_RIG)))
    try:
        return WorldModel(**(arguments | settings.model))
    except TypeError as error:
        raise ConfigError(f"The configuration's table `model` does not fit the world model: {error}") from error


def rig_facts(rig: str) -> dict[str, Any]:
    """What a model is told of the rig of a name, '' for none: arguments of `WorldModel`."""
    if not rig:
        return {"rig": rig}
    if rig != "tabletop":
        raise ConfigError(f"The cameras of the rig '{rig}' are not known; use 'tabletop', or '' for none.")
    from wvl_ros.worlds.droid import CAMERAS
    from wvl_ros.worlds.tabletop import FLOOR, TabletopWorld

    calibration = TabletopWorld().camera_calibration()
    cameras = [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in calibration[name].items()}
        for name in CAMERAS
    ]
    return {"rig": rig, "lowest_tcp": FLOOR, "cameras": cameras}


def with_words(model: WorldModel, instructions: Sequence[str]) -> WorldModel:
    """The same model, with the words of these instructions in its vocabulary; a new one begins as the unknown word."""
    known = list(model.config["vocabulary"])
    new = [word for word in collect_vocabulary(instructions) if word not in known]
    if not new:
        return model
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    larger = WorldModel(**(config | {"vocabulary": known + new}))
    weights = dict(model.state_dict())
    for name in ("instruction.embedding.weight", "reward_head.outcome.instruction.embedding.weight"):
        weights[name] = torch.cat([weights[name], weights[name][UNKNOWN].expand(len(new), -1)])
    larger.load_state_dict(weights)
    return larger
