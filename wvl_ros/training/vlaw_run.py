"""One VLAW update of the small VLA: imagine, judge, keep the successes, learn; stopped, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.rewards.interface import Judge
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry
from wvl_ros.training.checkpointing import write_json
from wvl_ros.training.imagined_episodes import Recorder
from wvl_ros.training.practice import practise
from wvl_ros.training.processes import Processes
from wvl_ros.training.samples import Samples, build_samples
from wvl_ros.training.supervised import SupervisedTrainer
from wvl_ros.training.vlaw import VLAWSettings, hard_start_weights, mixed_chances
from wvl_ros.world_model.imagination import Imagination
from wvl_ros.worlds.imagined_start import find_start

ROLLOUTS_FILE = "rollouts.jsonl"
MADE_OF_FILE = "vlaw.json"
KEPT_FOLDER = "imagined"  # the accepted rollouts, an episode file each
_BATCH = 96


@dataclass(frozen=True)
class Rollout:
    """What is noted of one imagined rollout: its number, task, the name of its start, the judge's probability."""

    number: int
    task: str
    start: str
    probability: float
    accepted: bool


class VLAW:
    """The update of one iteration.

    Args:
        policy: what is trained. imagination: of the world model; rig: of its cameras. judge: who keeps successes.
        starts: episodes of that rig, from whose first observations rollouts start.
        names: of the policy and the world model, noted in the episodes. processes: of this run; they take turns with
            the batches of rollouts, and the first one learns.
    """

    def __init__(
        self,
        policy: SmallPolicy,
        imagination: Imagination,
        rig: str,
        judge: Judge,
        starts: Sequence[EpisodeEntry],
        settings: VLAWSettings,
        out: Path,
        names: tuple[str, str] = ("", ""),
        processes: Processes | None = None,
    ) -> None:
        self.policy, self.imagination, self.rig, self.judge = policy, imagination, rig, judge
        self.settings, self.out, self.names, self.processes = settings, out, names, processes or Processes()
        tasks = sorted({entry.task for entry in starts})
        by_task = [[entry for entry in starts if entry.task == task] for task in tasks]
        self._plan = [own[i % len(own)] for i in range(settings.rollouts) for own in by_task]
        self.seconds = dict.fromkeys(("rollouts", "judge", "update"), 0.0)
        self._made_of = self._of_one_kind([entry.content for entry in starts])

    def _of_one_kind(self, starts: Sequence[str]) -> dict[str, Any]:
        """Of what this update is made; noted in `out` once it begins.

        Raises:
            ConfigError: one with other settings, models or starts was begun there; their rollouts must not be mixed.
        """
        digest = hashlib.sha256("\n".join(starts).encode()).hexdigest()
        models = {"policy": self.names[0], "world_model": self.names[1], "judge": self.judge.name}
        facts = {**asdict(self.settings), **models, "threshold": self.judge.threshold, "starts": digest}
        facts = json.loads(json.dumps(facts))
        path = self.out / MADE_OF_FILE
        begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else facts
        other = next((name for name in facts if begun.get(name) != facts[name]), None)
        if other is not None:
            raise ConfigError(
                f"In '{self.out}' an update was begun with {other} {begun.get(other)}, not {facts[other]}: run it as "
                "it was, or choose another --out."
            )
        return dict(facts)

    def imagine(self) -> list[Rollout]:
        """All rollouts; the accepted ones lie in `out/imagined`. Batches that the log has are not imagined again."""
        (self.out / KEPT_FOLDER).mkdir(parents=True, exist_ok=True)
        self._note()
        log = self.out / ROLLOUTS_FILE
        found = _read(log, len(self._plan))
        recorder = Recorder(self.imagination)
        quiet = None if self.processes.main else True
        with tqdm(total=len(self._plan), initial=len(found), desc="imagined rollouts", disable=quiet) as bar:
            while len(found) < len(self._plan):
                mine = self._batch(recorder, len(found) + self.processes.rank * _BATCH)
                new = [rollout for part in self.processes.gather_objects(mine) for rollout in part]
                found += new
                if self.processes.main:
                    part = log.with_name(f".{log.name}.part")
                    part.write_text("".join(json.dumps(vars(rollout)) + "\n" for rollout in found), encoding="utf-8")
                    part.replace(log)
                bar.update(len(new))
                bar.set_postfix(kept=sum(rollout.accepted for rollout in found))
        return found

    def learn(self, real: Iterator[Episode], rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """The supervised update on real successes and the accepted rollouts; writes the policy.

        Raises:
            ConfigError: nothing was accepted where only imagined successes are to be learned from.
        """
        settings, began = self.settings, time.perf_counter()
        self._note()
        kept = [rollout for rollout in rollouts if rollout.accepted]
        if not kept and settings.learn_from == "synthetic":
            raise ConfigError(
                f"The judge accepted none of the {len(rollouts)} imagined rollouts, so there is nothing to learn from: "
                "start from a policy that sometimes succeeds, or learn from real successes as well."
            )
        counts: Counter[str] = Counter()
        samples = build_samples(_counted(real, self._kept(kept), counts), self.policy.config)
        share, finding = settings.synthetic_share, settings.finding_share
        acting = self._chances(samples, counts["real"], rollouts, share)
        searching = self._chances(samples, counts["real"], rollouts, share if finding is None else finding)
        trainer = SupervisedTrainer(self.policy, samples, settings.update, self.out, acting, searching)
        losses = trainer.fit(steps=settings.steps)
        self.policy.save_pretrained(self.out)
        self.seconds["update"] += time.perf_counter() - began
        return {"steps": trainer.step, "real_episodes": counts["real"], "losses": losses}

    def _note(self) -> None:
        if self.processes.main:
            write_json(self.out / MADE_OF_FILE, self._made_of)

    def _batch(self, recorder: Recorder, first: int) -> list[Rollout]:
        began = time.perf_counter()
        entries = self._plan[first : first + _BATCH]
        if not entries:
            return []
        loaded = {id(entry): find_start(entry.load(), 0, self.imagination, self.rig) for entry in entries}
        starts = [loaded[id(entry)] for entry in entries]
        rng = np.random.default_rng([self.settings.seed, first])
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        seeds = rng.integers(2**31, size=len(entries)).tolist()
        practise(self.policy, recorder, starts, seeds, self.settings.temperature, generator)
        episodes = recorder.episodes(range(len(entries)), starts, *self.names)
        imagined = time.perf_counter()
        probability = self.judge.probability(episodes)
        self.seconds["rollouts"] += imagined - began
        self.seconds["judge"] += time.perf_counter() - imagined
        result = []
        for i, (entry, episode, p) in enumerate(zip(entries, episodes, probability.tolist(), strict=True)):
            rollout = Rollout(first + i, episode.task, entry.name, round(p, 5), p > self.judge.threshold)
            if rollout.accepted:
                episode.outcome, episode.outcome_source, episode.reward[-1:] = "success", "reward_model", 1.0
                episode.extra["judge"] = self.judge.name
                episode.episode_id = f"imagined_{rollout.number:06d}"
                episode.save(self._path(rollout))
            result.append(rollout)
        return result

    def _path(self, rollout: Rollout) -> Path:
        return self.out / KEPT_FOLDER / f"{rollout.task}_{rollout.number:06d}.safetensors"

    def _kept(self, rollouts: Sequence[Rollout]) -> Iterator[Episode]:
        for rollout in rollouts:
            yield Episode.load(self._path(rollout))

    def _chances(self, samples: Samples, real: int, rollouts: Sequence[Rollout], share: float | None) -> np.ndarray:
        names = sorted({f"{rollout.task}/{rollout.start}" for rollout in rollouts})
        starts = np.array([names.index(f"{rollout.task}/{rollout.start}") for rollout in rollouts], int)
        accepted = np.array([rollout.accepted for rollout in rollouts], bool)
        synthetic = samples.episode >= real
        weights = np.ones(len(samples))
        if self.settings.hard_starts and synthetic.any():
            weights[synthetic] = hard_start_weights(starts, accepted)[accepted][samples.episode[synthetic] - real]
        return mixed_chances(samples, synthetic, weights, share)


def _counted(real: Iterator[Episode], imagined: Iterator[Episode], counts: Counter[str]) -> Iterator[Episode]:
    for episode in real:
        counts["real"] += 1
        yield episode
    yield from imagined


def _read(log: Path, planned: int) -> list[Rollout]:
    """What the log has, at most the planned number; of a shorter plan's last batch, which was not whole, nothing."""
    if not log.is_file():
        return []
    rollouts = [Rollout(**json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
    return rollouts[:planned] if len(rollouts) >= planned else rollouts[: len(rollouts) // _BATCH * _BATCH]
