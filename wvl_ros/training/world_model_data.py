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
from wvl_ros.training.frame_cache import FrameCache, join, join_steps, open_cache, open_steps
from wvl_ros.training.mirror import is_symmetric, with_mirror_images
from wvl_ros.training.world_model_settings import DEFAULT_RIG, WorldModelTraining, rig_facts
from wvl_ros.worlds.imagined_start import is_calibrated

_SHARES, _REST = {"success": 0.4, "near_success": 0.4}, 0.2  # of outcomes, when `balanced`
_MOST = 5.0  # times as often as on average an episode is drawn at most
_POSTURES = 150  # episodes whose joints are looked at


@dataclass(frozen=True)
class TrainingData:
    """Episodes of a run: `replayed` bool (E,) marks the old ones among those of `cache`; `path` leads to the new.

    `own` are the same without mirror images; `motions` are these and others, of which only the steps are kept.
    """

    cache: FrameCache
    replayed: Tensor
    path: Path
    own: FrameCache
    motions: FrameCache

    def posture_samples(self, rig: str) -> tuple[Tensor, Tensor] | None:
        """`posture_samples` of some episodes of the calibrated rig, evenly over all; None where there are none."""
        from wvl_ros.training.posture import posture_samples

        entries = list_episodes(self.path)
        rows = np.linspace(0, len(entries) - 1, min(_POSTURES, len(entries))).round().astype(int)
        episodes = [entries[i].load(images=False) for i in rows]
        own = [episode for episode in episodes if is_calibrated(episode, rig)]
        return posture_samples(own) if own else None

    def weights(self, settings: WorldModelTraining) -> Tensor:
        """(E,) how often an episode is drawn: by `replay_share`, within old and new ones by `other_rigs`, and within
        those of one rig by `balanced`.
        """
        weights = torch.zeros(len(self.cache))
        usable = self.cache.frame_count > 1
        groups = [(self.replayed, settings.replay_share), (~self.replayed, 1 - settings.replay_share)]
        groups = [(rows & usable, share) for rows, share in groups if bool((rows & usable).any())]
        for rows, share in groups if len(groups) > 1 else [(rows, 1.0) for rows, _ in groups]:
            own = rows & (self.cache.calibrated != 0)
            other = rows & ~own
            both = bool(own.any()) and bool(other.any())
            for some, part in ((own, 1 - settings.other_rigs), (other, settings.other_rigs)):
                if bool(some.any()):
                    spread = self._balance(some) if settings.balanced else some / some.sum()
                    weights += share * (part if both else 1.0) * spread
        return weights

    def _balance(self, rows: Tensor) -> Tensor:
        """(E,) over the episodes of `rows` (E,) bool: tasks alike, and of each the outcomes by `_SHARES`."""
        groups: dict[str, dict[str, list[int]]] = {}
        for i in rows.nonzero()[:, 0].tolist():
            groups.setdefault(self.cache.tasks[i], {}).setdefault(self.cache.outcomes[i], []).append(i)
        weights = torch.zeros(len(rows))
        for outcomes in groups.values():
            whole = sum(_SHARES.get(outcome, _REST) for outcome in outcomes)
            for outcome, chosen in outcomes.items():
                weights[chosen] = _SHARES.get(outcome, _REST) / whole / len(chosen) / len(groups)
        weights = weights.clamp(max=_MOST / int(rows.sum()))  # a few of a kind are not to be learned by heart
        return weights / weights.sum()


def open_data(
    settings: WorldModelTraining,
    model: Mapping[str, Any],
    data: Path,
    replay: Path | None = None,
    motions: Path | None = None,
) -> TrainingData:
    """The episodes at `data`, those at `replay` behind them.

    Args:
        model: a model's configuration, or a configuration file's table `model`.
        motions: more episodes, which teach how things move alone.

    Raises:
        EpisodeError: an episode cannot be used.
        ConfigError: none is long enough, or all have one outcome; none of `motions` says where its things were.
    """
    shape = cache_shape(model)
    cache = chosen(open_cache(data, **shape), settings, data)
    replayed = torch.zeros(len(cache), dtype=torch.bool)
    if replay is not None:
        old = chosen(open_cache(replay, **shape), settings, replay)
        cache = join(cache, old)
        replayed = torch.cat([replayed, torch.ones(len(old), dtype=torch.bool)])
    check(cache, data)
    own = cache
    every = own
    if motions is not None:
        more = open_steps(motions, actions_per_frame=shape["actions_per_frame"], rig=shape["rig"])
        if not bool(more.tells_things.any()):
            raise ConfigError(
                f"None of the {len(more)} episodes of '{motions}' says where its things were (`objects` in its "
                f"`extra`, of the rig '{shape['rig']}'), so they teach no motion: leave --motions out."
            )
        every = join_steps(own, more)
    if settings.mirror and is_symmetric(model.get("cameras") or rig_facts(shape["rig"]).get("cameras", ())):
        cache = with_mirror_images(own, shape["patch"])
        replayed = torch.cat([replayed, replayed[own.calibrated > 0]])
    return TrainingData(cache, replayed, data, own, every)


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
