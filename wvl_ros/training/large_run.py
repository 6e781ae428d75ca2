"""A training run of a large world model; see `world_model_run` for the loop and the stopping rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from wvl_ros.evaluation import metrics
from wvl_ros.evaluation.outcome import choose_threshold, outcome_measures
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training import checkpointing
from wvl_ros.training.frame_cache import KINDS, FrameCache, episode_arrays, join
from wvl_ros.training.large_trainer import LargeTrainer
from wvl_ros.training.latent_cache import open_latents, read_views
from wvl_ros.training.processes import Processes
from wvl_ros.training.validation import VIDEOS, Verdict, best, write_comparison
from wvl_ros.training.world_model_data import TrainingData, check, chosen
from wvl_ros.training.world_model_run import BEST_FILE, Run, Sources
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.world_model.chunks import ChunkRollouts
from wvl_ros.worlds.droid import CONTROL_HZ
from wvl_ros.worlds.imagined_start import is_calibrated


class LargeRun(Run):
    """As `Run`, with latents in place of frames and without a second fit of the reward head."""

    def __init__(
        self, settings: WorldModelTraining, sources: Sources, out: Path, budget: Budget, processes: Processes
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.settings, self.out, self.processes = settings, out, processes
        cache, count = self._open(sources.data, sources), 0
        if sources.replay is not None:
            old = self._open(sources.replay, sources)
            cache, count = join(cache, old), len(old)
        check(cache, sources.data)
        replayed = torch.arange(len(cache)) >= len(cache) - count
        data = TrainingData(cache, replayed, sources.data, cache, cache)
        self.trainer: Any = LargeTrainer(
            settings, data, out, start=sources.start, lora_rank=sources.lora_rank, processes=processes
        )
        self.held: FrameCache | None = None
        self.episodes = list_episodes(sources.validation) if sources.validation is not None else []
        self.validates = bool(self.episodes)
        self.whole = self.budget = budget
        self.fit_share, self.blind = 0.0, None

    def _open(self, path: Path, sources: Sources) -> FrameCache:
        return chosen(open_latents(path, sources.start), self.settings, path)

    def _look(self, count: int, name: str, kind: str) -> Verdict:
        """Own rollouts of validation episodes by their recorded actions; videos beside the truth."""
        trainer = self.trainer
        model = trainer.model.eval()
        rows = np.linspace(0, len(self.episodes) - 1, min(count, len(self.episodes))).round().astype(int)
        psnr, chances, outcomes = [], [], []
        for number, row in enumerate(rows):
            entry = self.episodes[row]
            true, mine, rewards, chance = _imagine(model, entry, int(row))
            psnr += (
                [float(np.mean(metrics.psnr(mine[:, view], true[:, view]))) for view in range(3)] if len(mine) else []
            )
            chances.append(chance)
            outcomes.append(entry.outcome)
            if number < VIDEOS and len(mine):
                path = self.out / name / f"{row:05d}_{entry.task or 'episode'}_{entry.outcome or 'unknown'}.mp4"
                write_comparison(path, true, mine, rewards, chance, CONTROL_HZ / int(model.config["actions_per_frame"]))
        told = [i for i, outcome in enumerate(outcomes) if outcome in KINDS]
        threshold, frames = choose_threshold([chances[i] for i in told], [outcomes[i] for i in told])
        model.register_to_config(success_threshold=threshold, success_frames=frames)
        outcome = outcome_measures(chances, outcomes, threshold, frames)
        mean = round(float(np.mean(psnr)), 4) if psnr else 0.0
        self.figures = {
            "images": {"psnr": mean},
            "outcome": outcome,
            "chosen": {"success_threshold": threshold, "success_frames": frames},
        }
        trainer.log(kind, self.figures)
        return Verdict(trainer.step, outcome["accuracy"] or 0.0, mean, outcome["episodes"])

    def _keep(self, verdict: Verdict) -> None:
        checkpointing.save_state(self.out / BEST_FILE, self.trainer.tensors(), verdict.facts())

    def _finish(self) -> dict[str, Any]:
        """Takes the best weights, chooses the threshold on all validation episodes, and saves."""
        trainer = self.trainer
        result: dict[str, Any] = {}
        if self.validates:
            verdicts = self._verdicts()
            if not verdicts or verdicts[-1].step < trainer.step:
                name = f"validation_{trainer.step:06d}"
                verdicts.append(self._look(self.settings.validation_episodes, name, "validation"))
            kept = verdicts[best(verdicts)]
            if kept.step < trainer.step:
                trainer.restore(checkpointing.load_state(self.out / BEST_FILE)[0])
            self._look(3 * self.settings.validation_episodes, "validation", "final")
            result |= {"kept": kept.facts(), "validation": self.figures}
        trainer.save(self.out)
        return result


def _imagine(model: Any, entry: EpisodeEntry, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True and imagined views (T, 3, H, W, 3), rewards and probabilities of success (T,); T in whole calls."""
    rollouts = ChunkRollouts(model, stop_at_success=False)
    every, call = rollouts.actions_per_frame, rollouts.frames_per_call
    episode = entry.load(images=False)
    kinematics, actions = episode_arrays(episode)
    true = read_views(entry, rollouts.image_size, every)
    calls = (len(true) - 1) // call
    calibrated = torch.tensor([float(is_calibrated(episode, str(model.config["rig"])))])
    first = torch.from_numpy(true[:1])
    rollouts.start(first, kinematics[:1], [entry.instruction], calibrated, [seed])
    views, chances = [], []
    for step in range(calls * call * every):
        rollouts.move(actions[step][None])
        if rollouts.frame_due:
            drawn = rollouts.imagine()
            views.append(drawn.views[0].numpy())
            chances.append(drawn.success_probability[0].numpy().astype(float))
    n = calls * call
    rewards = episode.reward[every - 1 :: every][:n]
    if not n:
        return true[:0], true[:0], rewards, np.zeros(0)
    return true[1 : 1 + n], np.concatenate(views), rewards, np.concatenate(chances)
