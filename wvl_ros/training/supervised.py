"""Supervised fine-tuning (behaviour cloning) of the small VLA on demonstrations."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from wvl_ros.policies.flow import flow_loss
from wvl_ros.policies.network import Inputs, PolicyConfig, behaviour_loss
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.training import checkpointing
from wvl_ros.training.misnaming import OPPOSITES, PAIRS, Misnaming, are_pairs
from wvl_ros.training.samples import Samples, even_chances
from wvl_ros.training.settings import read_settings, require
from wvl_ros.world_model.rollout import has_bfloat16

STATE_FILE = "training_state.safetensors"
LOG_FILE = "log.jsonl"
_LOOKING = 0.5  # weight of what teaches to see apart from the task


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained.

    Attributes:
        batch_size, learning_rate, weight_decay, clip_norm: of AdamW; many small steps beat few large ones.
        warmup_steps: the learning rate rises over so many steps, then falls to 2 % by a cosine.
        word_dropout: share of words shown as `<unk>`, so that an unknown word does no harm.
        opposites: pairs of words of which an instruction means one and not the other: a policy that searches for what
            is named (`place_channels`) learns that by the other word it is not.
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
    save_every: float = 30.0
    seed: int = 0
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        positive = ("batch_size", "learning_rate", "clip_norm", "warmup_steps", "save_every")
        require(self, positive, lambda x: x > 0, "positive", "The training's")
        require(self, ("word_dropout",), lambda x: 0 <= x < 1, "in 0..1", "The training's")
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
    ) -> None:
        """Prepares a fit, or takes up the one that `out` holds.

        Args:
            policy: what is trained. samples: what it learns from. out: folder of the state.
            chances: (N,) how likely each sample is to be drawn, in any unit; None draws every task equally often.

        Raises:
            CheckpointError: the state in `out` is of another model.
        """
        self.policy, self.samples, self.config, self.out = policy, samples, config, out
        self.network = policy.network
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay
        )
        self.step, self.elapsed = 0, 0.0
        naming = Misnaming(config.opposites)
        # By what no name is given of a thing, it is not named either.
        self._others = [naming.all(text) or [""] for text in samples.instructions]
        self._until = np.cumsum(even_chances(samples) if chances is None else chances)
        if (out / STATE_FILE).exists():
            tensors, facts = checkpointing.load_state(out / STATE_FILE)
            checkpointing.restore_module(self.network, tensors, "network")
            checkpointing.restore_optimizer(self.optimizer, tensors)
            self.step, self.elapsed = int(facts["step"]), float(facts["elapsed"])

    def fit(self, minutes: float | None = None, steps: int | None = None) -> dict[str, float]:
        """Trains until the given number of minutes of training time or steps, counted from the very first start.

        Returns:
            The last logged losses, averaged over about a hundred steps.
        """
        self.network.train()
        self.out.mkdir(parents=True, exist_ok=True)
        sums: dict[str, float] = {}
        losses: dict[str, float] = {}
        last_save = time.monotonic()
        with tqdm(
            total=1000, desc="policy", disable=None, bar_format="{desc} {percentage:.1f}%|{bar}| {postfix}"
        ) as bar:
            while (done := self._progress(minutes, steps)) < 1.0:
                began = time.monotonic()
                terms = self._update(done)
                self.elapsed += time.monotonic() - began
                self.step += 1
                sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
                if self.step % 100 == 0:
                    losses, sums = {name: value / 100 for name, value in sums.items()}, {}
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
        checkpointing.save_state(self.out / STATE_FILE, tensors, {"step": self.step, "elapsed": self.elapsed})

    def _progress(self, minutes: float | None, steps: int | None) -> float:
        by_time = self.elapsed / (60 * minutes) if minutes is not None else 0.0
        by_steps = self.step / max(1, steps) if steps is not None else 0.0
        return max(by_time, by_steps)

    def _update(self, progress: float) -> dict[str, float]:
        config = self.config
        rate = min(1.0, (self.step + 1) / config.warmup_steps) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * rate
        inputs, actions, places, wrong = self._batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            if self.network.flows:
                generator = torch.Generator().manual_seed(1_000_003 * config.seed + self.step)
                known = self.network.context(inputs)
                terms = flow_loss(self.network, known, actions, places, generator)
            else:
                known = self.network(inputs)
                terms = behaviour_loss(known, actions, places)
            if known.seen is not None:
                looking = self.network.looking_losses(known.seen, inputs.state, places, wrong)
                terms |= looking | {"loss": terms["loss"] + _LOOKING * sum(looking.values())}
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self.optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _batch(self) -> tuple[Inputs, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch, drawn from seed and step alone: a resumed run sees the same."""
        rng = np.random.default_rng([self.config.seed, self.step])
        drawn = rng.random(self.config.batch_size) * self._until[-1]
        rows = np.searchsorted(self._until, drawn, side="right").clip(max=len(self.samples) - 1)
        inputs = self.samples.inputs(rows, self.policy.tokenizer)
        hidden = torch.from_numpy(rng.random(inputs.words.shape) < self.config.word_dropout) & (inputs.words > 0)
        words = torch.where(hidden, torch.ones_like(inputs.words), inputs.words)
        others = [self._others[i] for i in self.samples.instruction[rows]]
        wrong = self.policy.tokenizer.encode([texts[rng.integers(len(texts))] for texts in others])
        samples = self.samples
        seen = Inputs(inputs.images, inputs.state, words)
        return seen, samples.actions[rows], samples.places[rows], torch.from_numpy(wrong)

    def _log(self, losses: dict[str, float]) -> None:
        line = {"step": self.step, "elapsed": round(self.elapsed, 2)} | {k: round(v, 5) for k, v in losses.items()}
        with (self.out / LOG_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
