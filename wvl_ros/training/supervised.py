"""Supervised fine-tuning (behaviour cloning) of the small VLA on demonstrations."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from wvl_ros.policies.flow import flow_loss
from wvl_ros.policies.network import Inputs, PolicyConfig, PolicyNetwork, behaviour_loss, elsewhere
from wvl_ros.policies.places import votes_loss
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.policies.vision import jolted
from wvl_ros.training import checkpointing
from wvl_ros.training.misnaming import OPPOSITES, PAIRS, Misnaming, are_pairs
from wvl_ros.training.samples import Samples, even_chances
from wvl_ros.training.settings import read_settings, require
from wvl_ros.world_model.rollout import has_bfloat16

STATE_FILE = "training_state.safetensors"
LOG_FILE = "log.jsonl"
_LOOKING = 0.5  # weight of what teaches to see apart from the task
_LOCATED = 256  # samples whose places are searched for at once


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained.

    Attributes:
        batch_size, learning_rate, weight_decay, clip_norm: of AdamW; many small steps beat few large ones.
        warmup_steps: the learning rate rises over so many steps, then falls to 2 % by a cosine.
        word_dropout: share of words shown as `<unk>`, so that an unknown word does no harm.
        opposites: pairs of words of which an instruction means one and not the other: a policy that searches for what
            is named (`place_channels`) learns that by the other word one of the two places is another.
        search_share: of a policy that searches for what is named: so much of the training it learns to find it, by
            itself; then it learns to act by what it finds.
        act_afresh: then it does so from fresh weights. What acts has soon learned few demonstrations by heart: taken up
            again, it gets worse by more of them.
        search_rate, search_decay: learning rate and weight decay of finding.
        shift: of such a policy: when it learns to act, hand and places are moved together across the table by up to so
            many m either way: what is to be done does not depend on where on the table it is.
        jolt: and what is seen then by up to so many pixels either way.
        save_every: seconds between saves of the training state.
        seed: of the weights and the batches.
        policy: what is trained, where no earlier checkpoint says it.
    """

    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    warmup_steps: int = 100
    word_dropout: float = 0.05
    opposites: list[list[str]] = field(default_factory=lambda: [list(pair) for pair in OPPOSITES])
    search_share: float = 0.25
    act_afresh: bool = False
    search_rate: float = 3e-3
    search_decay: float = 1e-4
    shift: float = 0.12
    jolt: int = 2
    save_every: float = 30.0
    seed: int = 0
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        positive = ("batch_size", "learning_rate", "clip_norm", "warmup_steps", "search_rate", "save_every")
        require(self, positive, lambda x: x > 0, "positive", "The training's")
        require(self, ("word_dropout", "search_share"), lambda x: 0 <= x < 1, "in 0..1", "The training's")
        require(self, ("search_decay", "shift", "jolt"), lambda x: x >= 0, "0 or more", "The training's")
        require(self, ("opposites",), are_pairs, PAIRS, "The training's")

    @classmethod
    def from_yaml(cls, path: Path) -> TrainConfig:
        """Reads a YAML file of these settings, `policy` a mapping of `PolicyConfig`'s.

        Raises:
            ConfigError: no such file, not YAML, or an unknown or impossible setting.
        """
        return read_settings(cls, path, policy=PolicyConfig)


class SupervisedTrainer:
    """Fits a policy to samples; the state on disk restores it, bit for bit where the length is given in steps."""

    def __init__(
        self,
        policy: SmallPolicy,
        samples: Samples,
        config: TrainConfig,
        out: Path,
        chances: NDArray[np.float64] | None = None,
        finding_chances: NDArray[np.float64] | None = None,
    ) -> None:
        """Prepares a fit, or takes up the one that `out` holds.

        Args:
            policy: what is trained. samples: what it learns from. out: folder of the state.
            chances: (N,) how likely each sample is to be drawn, in any unit; None draws every task equally often.
            finding_chances: the same while it learns to find what is named; None: as `chances`.

        Raises:
            CheckpointError: the state in `out` is of another model.
        """
        self.policy, self.samples, self.config, self.out = policy, samples, config, out
        self.network = policy.network
        finding = set(self.network.finding_parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.network.parameters() if p not in finding]},
            {
                "params": [p for p in self.network.parameters() if p in finding],
                "lr": config.search_rate,
                "weight_decay": config.search_decay,
            },
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            config.learning_rate,
            (0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step, self.elapsed, self.searched = 0, 0.0, 0  # steps; seconds; steps of searching
        self._places: torch.Tensor | None = None  # (N, 6), normalised, of all samples; None: not yet to be relied on
        naming = Misnaming(config.opposites)
        # By what no name is given of a thing, it is not named either.
        self._others = [naming.all(text) or [""] for text in samples.instructions]
        chances = even_chances(samples) if chances is None else chances
        self._until = np.cumsum(chances)
        self._until_finding = self._until if finding_chances is None else np.cumsum(finding_chances)
        if (out / STATE_FILE).exists():
            tensors, facts = checkpointing.load_state(out / STATE_FILE)
            checkpointing.restore_module(self.network, tensors, "network")
            checkpointing.restore_optimizer(self.optimizer, tensors)
            self.step, self.elapsed = int(facts["step"]), float(facts["elapsed"])
            self.searched = int(facts.get("searched", 0))  # states of before had no such part

    def fit(self, minutes: float | None = None, steps: int | None = None) -> dict[str, float]:
        """Trains until the given number of minutes of training time or steps, counted from the very first start.

        Returns:
            The last logged losses, averaged over about a hundred steps.
        """
        self.network.train()
        self.out.mkdir(parents=True, exist_ok=True)
        sums: dict[str, float] = {}
        losses: dict[str, float] = {}
        summed = 0
        last_save = time.monotonic()
        with tqdm(
            total=1000, desc="policy", disable=None, bar_format="{desc} {percentage:.1f}%|{bar}| {postfix}"
        ) as bar:
            while (done := self._progress(minutes, steps)) < 1.0:
                began = time.monotonic()
                terms = self._update(done)
                self.elapsed += time.monotonic() - began
                self.step += 1
                if sums.keys() != terms.keys():  # it began to act
                    sums, summed = dict.fromkeys(terms, 0.0), 0
                sums, summed = {name: sums[name] + value for name, value in terms.items()}, summed + 1
                if self.step % 100 == 0:
                    losses, sums = {name: value / summed for name, value in sums.items()}, {}
                    self._log(losses)
                    bar.set_postfix(step=self.step, **{name: f"{value:.3f}" for name, value in losses.items()})
                    bar.update(int(1000 * done) - bar.n)
                if time.monotonic() - last_save > self.config.save_every:
                    self.save()
                    last_save = time.monotonic()
        self.save()
        self.network.eval()
        return losses

    def save(self) -> None:
        """Writes the training state, whole or not at all."""
        tensors = checkpointing.module_tensors(self.network, "network") | checkpointing.optimizer_tensors(
            self.optimizer
        )
        checkpointing.save_state(
            self.out / STATE_FILE, tensors, {"step": self.step, "elapsed": self.elapsed, "searched": self.searched}
        )

    def _progress(self, minutes: float | None, steps: int | None) -> float:
        by_time = self.elapsed / (60 * minutes) if minutes is not None else 0.0
        by_steps = self.step / max(1, steps) if steps is not None else 0.0
        return max(by_time, by_steps)

    def _update(self, progress: float) -> dict[str, float]:
        share = self.config.search_share if self.network.searches else 0.0
        searching = progress < share
        if searching:
            self.searched += 1
            part, first = progress / share, 0
        else:
            part, first = (progress - share) / (1 - share), self.searched
        rising = min(1.0, (self.step - first + 1) / self.config.warmup_steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rising * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            torch.manual_seed(1_000_003 * self.config.seed + self.step)  # what a network draws follows from the step
            terms = self._finding() if searching else self._acting()
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _finding(self) -> dict[str, torch.Tensor]:
        """Losses of finding what is named."""
        rows, inputs, rng = self._batch(self._until_finding)
        others = [self._others[i] for i in self.samples.instruction[rows]]
        wrong = self.policy.tokenizer.encode([texts[rng.integers(len(texts))] for texts in others])
        places = self.samples.places[rows]
        seen = self.network.search(inputs)
        looking = self.network.looking_losses(seen, inputs.state, places, torch.from_numpy(wrong))
        found = votes_loss(seen.found, places)
        return {"places": found, **looking, "loss": found + _LOOKING * sum(looking.values())}

    def _acting(self) -> dict[str, torch.Tensor]:
        """Losses of what is done: by places that are found already, where the policy searches for them."""
        rows, inputs, rng = self._batch(self._until)
        actions, places = self.samples.actions[rows], self.samples.places[rows]
        if self.network.searches:
            if self.config.act_afresh and self.step == self.searched:
                self._forget_acting()
            inputs.places = self._located()[rows]
            shift, jolt = self.config.shift, self.config.jolt
            inputs = elsewhere(inputs, torch.from_numpy(rng.uniform(-shift, shift, (len(rows), 2))).float())
            inputs.images = jolted(inputs.images, rng.integers(-jolt, jolt + 1, (len(rows), 2)))
        if self.network.flows:
            generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + self.step)
            return flow_loss(self.network, self.network.context(inputs), actions, places, generator)
        return behaviour_loss(self.network(inputs), actions, places)

    def _forget_acting(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            fresh = PolicyNetwork(self.policy.config)
        found = set(self.network.finding_parameters())
        with torch.no_grad():
            for parameter, new in zip(self.network.parameters(), fresh.parameters(), strict=True):
                if parameter not in found:
                    parameter.copy_(new)
                    self.optimizer.state.pop(parameter, None)

    def _located(self) -> torch.Tensor:
        """Where everything is found: what finds it does not change any more."""
        if self._places is None:
            rows, parts = np.arange(len(self.samples)), []
            self.network.eval()
            with torch.no_grad():
                for first in range(0, len(rows), _LOCATED):
                    inputs = self.samples.inputs(rows[first : first + _LOCATED], self.policy.tokenizer)
                    parts.append(self.network.search(inputs).found.places)
            self.network.train()
            self._places = torch.cat(parts)
        return self._places

    def _batch(self, until: NDArray[np.float64]) -> tuple[NDArray[np.int64], Inputs, np.random.Generator]:
        """A batch's rows and what is seen of them, drawn from seed and step alone: a resumed run sees the same."""
        rng = np.random.default_rng([self.config.seed, self.step])
        drawn = rng.random(self.config.batch_size) * until[-1]
        rows = np.searchsorted(until, drawn, side="right").clip(max=len(self.samples) - 1)
        inputs = self.samples.inputs(rows, self.policy.tokenizer)
        hidden = torch.from_numpy(rng.random(inputs.words.shape) < self.config.word_dropout) & (inputs.words > 0)
        words = torch.where(hidden, torch.ones_like(inputs.words), inputs.words)
        return rows, Inputs(inputs.images, inputs.state, words), rng

    def _log(self, losses: dict[str, float]) -> None:
        line = {"step": self.step, "elapsed": round(self.elapsed, 2)} | {k: round(v, 5) for k, v in losses.items()}
        with (self.out / LOG_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
