"""Whether the reward head listens: a success is none when the instruction had named something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wvl_ros.evaluation.imagined import ImaginedEpisode, imagine_episodes
from wvl_ros.evaluation.outcome import best_run
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Misnaming
from wvl_ros.world_model.model import WorldModel


def listening_measures(
    model: WorldModel,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    imagined: Sequence[ImaginedEpisode],
    *,
    steps: int = 1,
    seed: int = 0,
    misnaming: Misnaming | None = None,
) -> dict[str, Any]:
    """The successes among some episodes, `imagined` by their own instructions, and once more by others.

    Returns:
        'episodes' whose instruction could be changed; 'named', the share of them that is taken for a success by its own
        instruction, and 'misnamed', by the changed one (None where there are none), with the latter's 'interval_95'.
    """
    generator, misnaming = torch.Generator().manual_seed(seed), misnaming or Misnaming()
    told, rows = list(cache.instructions), []
    for row, episode in enumerate(episodes.tolist()):
        if cache.outcomes[episode] == "success":
            told[episode] = misnaming.one(cache.instructions[episode], generator)
            if told[episode] != cache.instructions[episode]:
                rows.append(row)
    again = imagine_episodes(model, replace(cache, instructions=told), episodes[rows], steps=steps, seed=seed)
    threshold, frames = float(model.config["success_threshold"]), int(model.config["success_frames"])
    named, misnamed = (
        sum(best_run(own.success_probability, frames) > threshold for own in rollouts)
        for rollouts in ([imagined[row] for row in rows], again)
    )
    return {
        "episodes": len(rows),
        "named": named / len(rows) if rows else None,
        "misnamed": misnamed / len(rows) if rows else None,
        "interval_95": [round(x, 4) for x in wilson_interval(misnamed, len(rows))],
    }
