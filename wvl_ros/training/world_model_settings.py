"""Settings of a training run of the world model, and the fresh model they describe."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wvl_ros.errors import ConfigError
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model.instruction import collect_vocabulary
from wvl_ros.world_model.model import WorldModel


@dataclass
class WorldModelTraining:
    """Settings of a training run.

    Attributes:
        batch: slots. learning_rate: peak, after `warmup` updates, falling in a line to `final_share` of it.
        weight_decay, ema: of AdamW; of the averaged weights that are saved.
        rollout_length: frames a slot lives on its own predictions, on average. teacher_forcing: share of the run
            without that.
        full_noise: share of fresh slots trained at sigma 1; history_noise: largest noise on half of the true history
            frames.
        start_share, end_share: share of slots that begin at an episode's first frame, or in its last four.
        other_rigs: share of slots on episodes of other rigs than the calibrated one, when there are any.
        uncalibrated_share: share of slots on calibrated episodes that are told that they are not.
        change_weight: extra weight on patches that change. reward_weight, gripper_weight: of these two losses beside
            the image.
        checkpoint_seconds, validate_seconds: training time between. validation_episodes: episodes of one validation.
    """

    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 50
    final_share: float = 0.03
    weight_decay: float = 0.01
    ema: float = 0.995
    rollout_length: float = 8.0
    teacher_forcing: float = 0.25
    full_noise: float = 0.5
    history_noise: float = 0.06
    start_share: float = 0.25
    end_share: float = 0.1
    other_rigs: float = 0.06
    uncalibrated_share: float = 0.03
    change_weight: float = 2.0
    reward_weight: float = 0.2
    gripper_weight: float = 0.1
    seed: int = 0
    checkpoint_seconds: float = 120.0
    validate_seconds: float = 900.0
    validation_episodes: int = 60
    tracking_effort: float = 1.0
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = (
            "teacher_forcing",
            "full_noise",
            "start_share",
            "end_share",
            "other_rigs",
            "uncalibrated_share",
            "final_share",
        )
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")
        if self.batch < 1 or self.rollout_length < 1 or self.learning_rate <= 0 or not 0 <= self.ema < 1:
            raise ConfigError("batch and rollout_length must be at least 1, learning_rate positive, ema in 0..1.")

    @classmethod
    def load(cls, path: Path | None) -> WorldModelTraining:
        """From a YAML file with the tables `model` and `training`; None gives the defaults.

        Raises:
            ConfigError: no such file, not YAML, or an unknown key.
        """
        if path is None:
            return cls(model={"rig": "tabletop"})
        try:
            tables = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"The configuration '{path}' cannot be read: {error}") from error
        known = {f.name for f in fields(cls)} - {"model"}
        settings = dict(tables.get("training") or {})
        unknown = (set(tables) - {"model", "training"}) | (set(settings) - known)
        if unknown:
            raise ConfigError(
                f"'{path}' has unknown keys: {', '.join(sorted(unknown))}; known are: {', '.join(sorted(known))}."
            )
        return cls(**settings, model=dict(tables.get("model") or {}))


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


def build_model(settings: WorldModelTraining, cache: FrameCache) -> WorldModel:
    """A fresh model for a cache: its vocabulary, and the cameras and limits of the rig it is told of."""
    from wvl_ros.worlds import droid

    arguments: dict[str, Any] = {
        "vocabulary": collect_vocabulary(cache.instructions),
        "max_linear": droid.MAX_LINEAR_DELTA,
        "max_rotation": droid.MAX_ROTATION_DELTA,
    }
    rig = settings.model.get("rig", "")
    if rig == "tabletop":
        from wvl_ros.worlds.tabletop import FLOOR, TabletopWorld

        calibration = TabletopWorld().camera_calibration()
        arguments["lowest_tcp"] = FLOOR
        arguments["cameras"] = [
            {
                key: value.tolist() if isinstance(value, np.ndarray) else value
                for key, value in calibration[name].items()
            }
            for name in droid.CAMERAS
        ]
    elif rig:
        raise ConfigError(f"The cameras of the rig '{rig}' are not known; use 'tabletop', or '' for none.")
    try:
        return WorldModel(**(arguments | settings.model))
    except TypeError as error:
        raise ConfigError(f"The configuration's table `model` does not fit the world model: {error}") from error
