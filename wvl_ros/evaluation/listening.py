"""Whether the reward head listens: a success is none when the instruction had named something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.evaluation.imagined import imagine_episodes
from wvl_ros.evaluation.outcome import best_run
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model.instruction import CONTRASTS, misname
from wvl_ros.world_model.model import WorldModel


def listening_measures(
    model: WorldModel,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    *,
    contrasts: Sequence[Sequence[str]] = CONTRASTS,
    steps: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """The successes among some episodes imagined once more, with an instruction that names something else.

    Returns:
        'episodes' whose instruction could be changed; 'false_success', the share of them still taken for a success
        (None where there are none); and its 'interval_95'.
    """
    generator = torch.Generator().manual_seed(seed)
    told = list(cache.instructions)
    chosen = []
    for episode in episodes.tolist():
        if cache.outcomes[episode] == "success":
            told[episode] = misname(cache.instructions[episode], contrasts, generator)
            if told[episode] != cache.instructions[episode]:
                chosen.append(episode)
    imagined = imagine_episodes(model, replace(cache, instructions=told), np.array(chosen, int), steps=steps, seed=seed)
    threshold, frames = float(model.config["success_threshold"]), int(model.config["success_frames"])
    fooled = sum(best_run(own.success_probability, frames) > threshold for own in imagined)
    return {
        "episodes": len(chosen),
        "false_success": fooled / len(chosen) if chosen else None,
        "interval_95": [round(x, 4) for x in wilson_interval(fooled, len(chosen))],
    }
