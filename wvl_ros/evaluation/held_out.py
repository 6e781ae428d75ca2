"""Episodes to measure a world model on: as many successes as near-successes, half of them played by a policy."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.sans.collect import Job
from wvl_ros.worlds.tasks import TASKS

OUTCOMES = ("success", "near_success")
TEMPERATURE = 2.0  # the policy's is drawn from 0 to this
PATIENCE = 12  # candidates of a policy for each place; an expert takes the places that it then has not filled
_BATCH = 16
_NOTE = "held_out.json"


def collect_held_out(
    folder: Path,
    seed: int,
    episodes: int,
    policy: Path,
    *,
    tasks: Sequence[str] = tuple(TASKS),
    size: int = 128,
    workers: int = 1,
) -> Path:
    """Makes a folder of episodes from tabletop seeds, the same for the same arguments.

    Of each task an equal number; of these one half successes and one half near-successes; of each half one half played
    by the policy, the other by scripted experts of every skill. Candidates have the seeds `seed`, `seed` + 1, ..., and
    the first that fit are taken.

    Args:
        folder: to write to; a complete one is left as it is.
        episodes: rounded up to a multiple of four for each task.
        policy: folder of its checkpoint. size: px of the images.

    Raises:
        ConfigError: the folder holds episodes of other arguments, or something else.
    """
    places = -(-episodes // (4 * len(tasks)))  # of one task, outcome and kind of player
    facts = {"seed": seed, "places": places, "policy": policy.name, "size": size, "tasks": list(tasks)}
    if _prepare(folder, facts):
        return folder
    context = multiprocessing.get_context("spawn")  # a forked child would inherit the renderer's context
    with context.Pool(workers) as pool, tqdm(total=4 * len(tasks) * places, desc="episodes", disable=None) as bar:
        for task in tasks:
            left = dict.fromkeys(OUTCOMES, places)
            for player in (str(policy), ""):
                if not player:
                    left = {outcome: places + rest for outcome, rest in left.items()}
                tried = 0
                for batch in _batches(Job(task, seed, size, policy=player, temperature=TEMPERATURE if player else 0.0)):
                    for job, outcome in pool.map(_save, [(folder, job, dict(left)) for job in batch]):
                        if left.get(outcome, 0):
                            left[outcome] -= 1
                            bar.update()
                        else:
                            _file(folder, job).unlink(missing_ok=True)
                    tried += len(batch)
                    if not any(left.values()) or (player and tried >= PATIENCE * places):
                        break
    _note(folder, facts | {"complete": True})
    return folder


def _prepare(folder: Path, facts: dict[str, object]) -> bool:
    """Whether the folder holds these episodes already; else it is made empty for them."""
    note = folder / _NOTE
    if note.is_file():
        found = json.loads(note.read_text())
        complete = found.pop("complete")
        if found != facts:
            raise ConfigError(f"'{folder}' holds episodes of other seeds or another number; choose another folder.")
        if complete:
            return True
        for path in folder.glob("*.safetensors"):  # of a run that was stopped; they are made again
            path.unlink()
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"'{folder}' holds something else; choose another folder for the episodes.")
    folder.mkdir(parents=True, exist_ok=True)
    _note(folder, facts | {"complete": False})
    return False


def _note(folder: Path, facts: dict[str, object]) -> None:
    part = folder / f".{_NOTE}.part"
    part.write_text(json.dumps(facts))
    part.replace(folder / _NOTE)


def _batches(first: Job) -> Iterator[list[Job]]:
    """The job with the seeds from its own on, for ever: a policy takes every other one, an expert those between."""
    seed = first.seed + (0 if first.policy else 1)
    while True:
        yield [replace(first, seed=seed + 2 * i) for i in range(_BATCH)]
        seed += 2 * _BATCH


def _file(folder: Path, job: Job) -> Path:
    return folder / f"{job.task}_{'policy' if job.policy else 'expert'}_{job.seed:07d}.safetensors"


def _save(work: tuple[Path, Job, dict[str, int]]) -> tuple[Job, str]:
    folder, job, wanted = work
    episode = job.run()
    if wanted.get(episode.outcome, 0):
        episode.save(_file(folder, job))
    return job, episode.outcome
