"""Whether the reward head listens: a success is none when the instruction had named something else."""

from __future__ import annotations

import re
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
from wvl_ros.world_model.model import WorldModel

OTHERS = {"red": "blue", "blue": "red", "yellow": "green", "green": "yellow"}  # of the tabletop's things


def misname(instruction: str, generator: torch.Generator) -> str:
    """The instruction with one of its colours exchanged for the other, so that it asks for something else; as it is
    where it names none.
    """
    parts = re.split(r"(\W+)", instruction)
    found = [i for i, word in enumerate(parts) if word.lower() in OTHERS]
    if found:
        place = found[int(torch.randint(len(found), (), generator=generator))]
        parts[place] = OTHERS[parts[place].lower()]
    return "".join(parts)


def listening_measures(
    model: WorldModel,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    imagined: Sequence[ImaginedEpisode],
    *,
    steps: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """The successes among some episodes, `imagined` by their own instructions, and once more by others.

    Returns:
        'episodes' whose instruction could be changed; 'named', the share of them that is taken for a success by its own
        instruction, and 'misnamed', by the changed one (None where there are none), with the latter's 'interval_95'.
    """
    generator = torch.Generator().manual_seed(seed)
    told, rows = list(cache.instructions), []
    for row, episode in enumerate(episodes.tolist()):
        if cache.outcomes[episode] == "success":
            told[episode] = misname(cache.instructions[episode], generator)
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
