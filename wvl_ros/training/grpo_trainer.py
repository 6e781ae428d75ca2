"""GRPO of the small VLA; may be stopped and goes on after the last whole update.

Several processes (`torchrun`) take turns with the batches of rollouts, each batch with random numbers of its own, and
all make the same update of what all have seen: so the result is that of one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.policies.noise import OffsetNoise
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.episodes import EpisodeEntry
from wvl_ros.training import checkpointing
from wvl_ros.training.arena import Arena, Beginning
from wvl_ros.training.grpo import (
    GRPOSettings,
    group_advantages,
    informative,
    running_advantages,
    steer,
    surrogate,
)
from wvl_ros.training.grpo_chart import write_progress
from wvl_ros.training.journal import Journal
from wvl_ros.training.practice import Practice, join
from wvl_ros.training.processes import Processes

STATE_FILE = "training_state.safetensors"
BEST_FOLDER = "best"  # the policy that did best in the checks
_BATCH = 64  # rollouts at a time
_IDLE = 3  # updates in a row without a group to learn from that end the run
_LASTING = 3  # updates over which its disagreement is averaged
_KEPT = ("update", "seconds", "rate", "idle", "checks", "disagreements", "rollouts")

Check = Callable[[Path, Sequence[str]], dict[str, float]]  # of a policy's folder, in these tasks


class GRPOTrainer:
    """Rounds of practice and update of a policy.

    Args:
        policy: what is trained. arena: where it practises.
        entries: episodes in which rollouts begin, see `GRPOSettings.latest`.
        check: the policy's share of successes by task in the real world; None checks nothing.
        processes: of this run; only the first checks and writes.
    """

    def __init__(
        self,
        policy: SmallPolicy,
        arena: Arena,
        entries: Sequence[EpisodeEntry],
        settings: GRPOSettings,
        out: Path,
        check: Check | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.policy, self.arena, self.settings, self.out = policy, arena, settings, out
        self.processes = processes or Processes()
        self.entries = list(entries)
        self.tasks = sorted({entry.task for entry in self.entries})
        self.check = check if settings.check_every else None
        self.network = policy.network.eval()  # actions must be as likely as they were when they were chosen
        if settings.explore == "offset":
            policy.noise = OffsetNoise(policy.config.chunk_size, policy.config.offset_std)
        self.first = copy.deepcopy(self.network).eval()
        # Practice by some words must not change what others ask for.
        for parameter in self.network.understanding_parameters():
            parameter.requires_grad_(False)
        practised = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(practised, settings.learning_rate)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.update, self.seconds, self.rate, self.idle = 0, 0.0, settings.learning_rate, 0
        self.checks: list[dict[str, float]] = []
        self.disagreements: list[float] = []
        self.rollouts = 0
        if (out / STATE_FILE).is_file():
            self._restore()
        self.processes.wait()  # until all have read the state
        self.journal = Journal(out, self.update, writes=self.processes.main)

    def fit(self) -> dict[str, Any]:
        """All updates that are left; gives the last one's figures and why the run ended.

        Raises:
            ConfigError: no group of the first update differs within itself, or a gradient is not a number.
        """
        settings, facts, reason = self.settings, {}, "all updates are done"
        self._look_at_the_real_world()
        quiet = None if self.processes.main else True
        with tqdm(total=settings.updates, initial=self.update, desc="GRPO", disable=quiet) as bar:
            while self.update < settings.updates:
                began = time.perf_counter()
                facts = self._update()
                self.seconds += time.perf_counter() - began
                self.update += 1
                self.journal.add("update", self.update, self.seconds, facts)
                bar.update()
                success = f"{facts[f'{self.arena.name}_success']:.2f}"
                bar.set_postfix({self.arena.name: success, "kept": facts["groups"]})
                if self.update % max(1, settings.check_every) == 0:
                    self._look_at_the_real_world()
                if self.processes.main:
                    self.save()
                    write_progress(self.out)
                if stop := self._must_stop():
                    reason = stop
                    break
        self.journal.close()
        return {"updates": self.update, "rollouts": self.rollouts, "reason": reason, "checks": self.checks, **facts}

    def _must_stop(self) -> str:
        """Why the run must end here, '' when it must not; the policy that did best in the real world is then kept."""
        if self.idle >= _IDLE:
            return "no group differs within itself any more"
        if self._has_fallen():
            reason = "success in the real world fell below its best"
        elif self._is_exploited():
            reason = f"the judge '{self.arena.doubter}' believes ever fewer of the imagined successes"
        else:
            return ""
        if not (self.out / BEST_FOLDER).is_dir():
            return reason
        if self.processes.main:
            SmallPolicy.from_pretrained(self.out / BEST_FOLDER).save_pretrained(self.out)
        best = max(self.checks, key=lambda check: check["success"])
        return f"{reason}; the policy after update {best['update']:.0f} is kept"

    def save(self) -> None:
        """The policy, and the state of the run, each whole or not at all."""
        self.policy.save_pretrained(self.out)
        tensors = {
            **checkpointing.module_tensors(self.network, "network"),
            **checkpointing.module_tensors(self.first, "first"),
            **checkpointing.optimizer_tensors(self.optimizer),
            "generator": self.generator.get_state(),
        }
        facts = {name: getattr(self, name) for name in _KEPT}
        checkpointing.save_state(self.out / STATE_FILE, tensors, facts | {"settings": asdict(self.settings)})

    def _restore(self) -> None:
        tensors, facts = checkpointing.load_state(self.out / STATE_FILE)
        checkpointing.restore_module(self.network, tensors, "network")
        checkpointing.restore_module(self.first, tensors, "first")
        checkpointing.restore_optimizer(self.optimizer, tensors)
        self.generator.set_state(tensors["generator"])
        for name in _KEPT:
            setattr(self, name, facts[name])

    def _update(self) -> dict[str, Any]:
        settings, began = self.settings, time.perf_counter()
        kept, rewards, success = self._practise()
        practised = time.perf_counter()
        facts: dict[str, Any] = {
            f"{self.arena.name}_success": round(success, 4), "return": round(float(rewards.mean()), 4), "groups": 0,
            "practice_seconds": practised - began,
        }  # fmt: skip
        if self.disagreements:
            facts["disagreement"] = self.disagreements[-1]
        self.idle = self.idle + 1 if kept is None else 0
        if kept is None:
            if self.update == 0:
                raise ConfigError(_none_to_learn_from(rewards))
            return facts
        practice, advantages = kept
        facts |= self._learn(practice, advantages)
        self.rate = steer(self.rate, facts["divergence"], settings.target_kl, settings.kl_step)
        return facts | {
            "groups": len(advantages) // settings.group_size, "learning_rate": self.rate,
            "update_seconds": time.perf_counter() - practised,
        }  # fmt: skip

    def _practise(self) -> tuple[tuple[Practice, Tensor] | None, Tensor, float]:
        """Rollouts of groups that differ within themselves with their advantages (B, D), all groups' returns, and the
        share of successes among them.
        """
        settings, size = self.settings, self.settings.group_size
        parts: list[Practice] = []
        advantages: list[Tensor] = []
        seen: list[Tensor] = []
        successes: list[Tensor] = []
        turned_down: list[bool] = []
        for _ in range(settings.attempts):
            missing = settings.groups - sum(map(len, advantages)) // size
            if missing <= 0:
                break
            for practice, doubted in self._in_turns(self._starts(missing)):
                self.rollouts += len(practice.success)
                rewards = (practice.success.float() if settings.reward == "success" else practice.chance).view(-1, size)
                successes.append(practice.success)
                chosen = informative(rewards, settings.lowest, settings.highest)
                seen.append(rewards)
                turned_down += doubted
                if bool(chosen.any()):
                    parts.append(practice.select(chosen.repeat_interleave(size)))
                    advantages.append(self._advantages(practice, rewards)[chosen].flatten(0, 1))
        if turned_down:
            self.disagreements.append(round(float(np.mean(turned_down)), 4))
        success = float(torch.cat(successes).float().mean())
        if not parts:
            return None, torch.cat(seen), success
        most = settings.groups * size
        whole = join(parts)
        longest = whole.counts.shape[1]
        filled = [F.pad(part, (0, longest - part.shape[1])) for part in advantages]
        kept = whole.select(torch.arange(min(most, len(whole.success)))), torch.cat(filled)[:most]
        return kept, torch.cat(seen), success

    def _advantages(self, practice: Practice, rewards: Tensor) -> Tensor:
        """(G, N, D) of a practice's groups at each decision, for their returns (G, N)."""
        running = practice.counts.any(2).view(*rewards.shape, -1)
        if self.settings.baseline == "running":
            return running_advantages(rewards, running)
        return group_advantages(rewards)[..., None].expand(running.shape)

    def _in_turns(self, starts: list[Beginning]) -> list[tuple[Practice, list[bool]]]:
        """The rollouts from all starts, batch by batch, and what the second judge turns down of each."""
        size = self.settings.group_size
        mine = {}
        batches = range(0, len(starts), max(1, _BATCH // size))
        for number, first in enumerate(batches):
            every = [start for start in starts[first : first + batches.step] for _ in range(size)]
            seeds = torch.randint(2**31, (len(every),), generator=self.generator).tolist()
            luck = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=self.generator)))
            if number % self.processes.count == self.processes.rank:
                practice = self.arena.practise(self.policy, every, seeds, self.settings.temperature, luck)
                mine[number] = practice, self.arena.doubted()
        found = {number: part for parts in self.processes.gather_objects(mine) for number, part in parts.items()}
        return [found[number] for number in range(len(batches))]

    def _starts(self, count: int) -> list[Beginning]:
        """Where to begin, every task equally often."""
        by_task = [[entry for entry in self.entries if entry.task == task] for task in self.tasks]
        rng = np.random.default_rng([self.settings.seed, self.update, self.rollouts])
        order = rng.permutation(len(by_task))  # else the first tasks would come more often where few groups are missing
        picked = [by_task[order[i % len(by_task)]] for i in range(count)]
        chosen = [entries[int(rng.integers(len(entries)))] for entries in picked]
        return [Beginning(entry, self._moment(entry, rng)) for entry in chosen]

    def _moment(self, entry: EpisodeEntry, rng: np.random.Generator) -> int:
        """A step of an episode that has images and at which a policy would look again."""
        grid = math.lcm(entry.image_stride, self.policy.config.execute_steps)
        last = int(self.settings.latest * (entry.length - 1)) // grid
        return grid * int(rng.integers(last + 1)) if last else 0

    def _learn(self, practice: Practice, advantages: Tensor) -> dict[str, float]:
        settings, noise, temperature = self.settings, self.policy.noise, self.settings.temperature
        rows, decisions = practice.counts.any(2).nonzero(as_tuple=True)
        with torch.no_grad():
            before = self._outputs(practice, rows, decisions)
        losses, clips = [], []
        for _ in range(settings.epochs):
            order = torch.randperm(len(rows), generator=self.generator)
            for some in order.split(settings.minibatch):
                r, d = rows[some], decisions[some]
                out = self.network(practice.inputs(r, d))
                log_probs = noise.log_prob_parts(out.mean, out.gripper, practice.actions[r, d], temperature)
                counts = practice.counts[r, d][..., None] & noise.parts
                loss, clipped = surrogate(
                    log_probs, practice.log_probs[r, d], advantages[r, d, None, None], counts,
                    settings.clip_low, settings.clip_high,
                )  # fmt: skip
                if settings.kl_weight:
                    with torch.no_grad():
                        anchor = self.first(practice.inputs(r, d)).mean
                    apart = noise.divergence(out.mean, anchor, temperature)
                    moving = counts[..., :6]
                    loss = loss + settings.kl_weight * (apart * moving).sum() / moving.sum().clamp(min=1)
                held = (part[some] for part in before)
                loss = loss + settings.hold_weight * noise.strayed(out.mean, out.gripper, *held)
                self._step(loss)
                losses.append(float(loss.detach()))
                clips.append(float(clipped))
        self.processes.copy_from_main(self.network)  # what processors differ in must not add up
        with torch.no_grad():
            after = self._outputs(practice, rows, decisions)
        counts = practice.counts[rows, decisions][..., None] & noise.parts[:, :6]
        moved = noise.divergence(after[0], before[0], temperature)
        return {
            "loss": float(np.mean(losses)),
            "clipped": float(np.mean(clips)),
            "divergence": float((moved * counts).sum() / counts.sum()),
        }

    def _outputs(self, practice: Practice, rows: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(rows.split(1024), decisions.split(1024), strict=True)
        outputs = [self.network(practice.inputs(r, d)) for r, d in parts]
        return torch.cat([out.mean for out in outputs]), torch.cat([out.gripper for out in outputs])

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm))
        if not math.isfinite(norm):
            raise ConfigError(
                f"GRPO diverged at update {self.update + 1}: a gradient is not a number. The policy before it "
                f"is kept in '{self.out}'; lower learning_rate (now {self.rate:.2g}) and run the command again."
            )
        self.optimizer.step()

    def _look_at_the_real_world(self) -> None:
        if self.check is None or any(check["update"] == self.update for check in self.checks):
            return
        found: dict[str, float] = {}
        if self.processes.main:
            self.policy.save_pretrained(self.out)
            found = self.check(self.out, self.tasks)
            if all(found["success"] > check["success"] for check in self.checks):
                self.policy.save_pretrained(self.out / BEST_FOLDER)
        found = self.processes.copy_object(found)
        self.checks.append({"update": self.update, **found})
        self.journal.add("real", self.update, self.seconds, found)

    def _has_fallen(self) -> bool:
        """Whether the last check's success lies `margin` standard errors below the best one's."""
        if len(self.checks) < 2:
            return False
        best, last = max(self.checks, key=lambda check: check["success"]), self.checks[-1]
        n = int(last["episodes"])
        low, high = wilson_interval(round(last["success"] * n), n)
        error = (high - low) / (2 * 1.96)
        return last["success"] < best["success"] - self.settings.margin * math.sqrt(2) * error

    def _is_exploited(self) -> bool:
        """Whether the second judge turns down a larger share of imagined successes than in the first updates."""
        told = self.disagreements
        if len(told) < 2 * _LASTING:
            return False
        return float(np.mean(told[-_LASTING:]) - np.mean(told[:_LASTING])) > self.settings.disagreement_margin


def _none_to_learn_from(rewards: Tensor) -> str:
    share = float(rewards.mean())
    if share == 0:
        return (
            f"All {rewards.numel()} rollouts failed, so there is nothing to compare: start from a policy that "
            "sometimes succeeds (--init), or raise `temperature`."
        )
    if share == 1:
        return f"All {rewards.numel()} rollouts succeeded: on these starts there is nothing left to learn."
    return (
        f"Of {len(rewards)} groups none has between `lowest` and `highest` successes: raise `group_size` or "
        "`temperature`."
    )
