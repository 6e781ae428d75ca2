"""The episodes of a training run: new ones, old ones replayed beside them, and whether they can be learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wvl_ros.errors import ConfigError
from wvl_ros.sans.episodes import list_episodes
from wvl_ros.training.frame_cache import FrameCache, join, open_cache
from wvl_ros.training.world_model_settings import DEFAULT_RIG, WorldModelTraining
from wvl_ros.worlds.imagined_start import is_calibrated

_POSTURES = 150  # episodes whose joints are looked at


@dataclass(frozen=True)
class TrainingData:
    """Episodes of a run: `replayed` bool (E,) marks the old ones among those of `cache`; `path` leads to the new."""

    cache: FrameCache
    replayed: Tensor
    path: Path

    def posture_samples(self, rig: str) -> tuple[Tensor, Tensor] | None:
        """`posture_samples` of some episodes of the calibrated rig, evenly over all; None where there are none."""
        from wvl_ros.training.posture import posture_samples

        entries = list_episodes(self.path)
        rows = np.linspace(0, len(entries) - 1, min(_POSTURES, len(entries))).round().astype(int)
        episodes = [entries[i].load(images=False) for i in rows]
        own = [episode for episode in episodes if is_calibrated(episode, rig)]
        return posture_samples(own) if own else None

    def weights(self, settings: WorldModelTraining) -> Tensor:
        """(E,) how often an episode is drawn: by `replay_share`, and within old and new ones by `other_rigs`."""
        weights = torch.zeros(len(self.cache))
        usable = self.cache.frame_count > 1
        groups = [(self.replayed, settings.replay_share), (~self.replayed, 1 - settings.replay_share)]
        groups = [(rows & usable, share) for rows, share in groups if bool((rows & usable).any())]
        for rows, share in groups if len(groups) > 1 else [(rows, 1.0) for rows, _ in groups]:
            own = rows & (self.cache.calibrated > 0)
            other = rows & ~own
            if bool(own.any()) and bool(other.any()):
                weights[own] = share * (1 - settings.other_rigs) / own.sum()
                weights[other] = share * settings.other_rigs / other.sum()
            else:
                weights[rows] = share / rows.sum()
        return weights


def open_data(
    settings: WorldModelTraining, shape: Mapping[str, Any], data: Path, replay: Path | None = None
) -> TrainingData:
    """The episodes at `data`, those at `replay` behind them.

    Args:
        shape: the model's `cache_shape`.

    Raises:
        EpisodeError: an episode cannot be used.
        ConfigError: none is long enough, or all have one outcome.
    """
    cache = chosen(open_cache(data, **shape), settings, data)
    replayed = torch.zeros(len(cache), dtype=torch.bool)
    if replay is not None:
        old = chosen(open_cache(replay, **shape), settings, replay)
        cache = join(cache, old)
        replayed = torch.cat([replayed, torch.ones(len(old), dtype=torch.bool)])
    check(cache, data)
    return TrainingData(cache, replayed, data)


def cache_shape(model: Mapping[str, Any]) -> dict[str, Any]:
    """What `open_cache` needs to know of a model's configuration, or of a configuration file's table `model`."""
    return {
        "size": int(model.get("image_size", 64)),
        "patch": int(model.get("patch", 4)),
        "actions_per_frame": int(model.get("actions_per_frame", 3)),
        "rig": str(model.get("rig", DEFAULT_RIG)),
    }


def chosen(cache: FrameCache, settings: WorldModelTraining, data: Path) -> FrameCache:
    """The episodes with the outcomes and sources that the settings name."""
    rows = [
        i
        for i, (outcome, source) in enumerate(zip(cache.outcomes, cache.sources, strict=True))
        if (not settings.outcomes or outcome in settings.outcomes)
        and (not settings.sources or source.partition("/")[0] in settings.sources)
    ]
    if len(rows) == len(cache):
        return cache
    if not rows:
        raise ConfigError(
            f"No episode of '{data}' has an outcome among [{', '.join(settings.outcomes) or 'all'}] and a source among "
            f"[{', '.join(settings.sources) or 'all'}]; change `outcomes` or `sources` in the configuration."
        )
    return cache.select(rows)


def check(cache: FrameCache, data: Path) -> None:
    """Raises a ConfigError when nothing can be learned from the episodes."""
    if not bool((cache.frame_count > 1).any()):
        needed = cache.actions_per_frame + 1
        raise ConfigError(
            f"No episode of '{data}' is long enough: the world model needs two frames, that is {needed} steps; "
            "record longer ones."
        )
    told = {outcome for outcome, known in zip(cache.outcomes, cache.labelled.tolist(), strict=True) if known}
    missing = "successes" if "success" not in told else "near-successes or failures" if len(told) == 1 else ""
    if missing:
        all_are = f"are all '{told.pop()}'" if len(told) == 1 else "hold no success" if told else "have no outcome"
        raise ConfigError(
            f"The {len(cache)} episodes of '{data}' {all_are}: the reward head cannot learn from that. Add {missing} "
            "(wvl collect, wvl label) or replay older episodes (--replay)."
        )
