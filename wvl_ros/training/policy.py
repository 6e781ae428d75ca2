"""`wvl train policy`: supervised fine-tuning (behaviour cloning) of the small VLA on demonstrations."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError
from wvl_ros.policies.network import Inputs, PolicyConfig, behaviour_loss
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.training import checkpointing
from wvl_ros.training.demonstrations import collect
from wvl_ros.training.samples import Samples, build_samples, read_episodes

STATE_FILE = "training_state.safetensors"
LOG_FILE = "log.jsonl"
METHODS = ("sft",)


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained.

    Attributes:
        batch_size, learning_rate, weight_decay, clip_norm: of AdamW; many small steps beat few large ones.
        warmup_steps: the learning rate rises over so many steps, then falls to 2 % by a cosine.
        word_dropout: share of words shown as `<unk>`, so that an unknown word does no harm.
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
    save_every: float = 30.0
    seed: int = 0
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "clip_norm", "warmup_steps", "save_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"The training's {name} must be positive, but is {getattr(self, name)}.")
        if not 0 <= self.word_dropout < 1:
            raise ConfigError(f"The training's word_dropout must lie in 0..1, but is {self.word_dropout}.")

    @classmethod
    def from_yaml(cls, path: Path) -> TrainConfig:
        """Reads a YAML file of these settings, `policy` a mapping of `PolicyConfig`'s.

        Raises:
            ConfigError: no such file, not YAML, or an unknown or impossible setting.
        """
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"'{path}' cannot be read as a training configuration: {error}") from error
        if not isinstance(values, dict) or not isinstance(values.get("policy", {}), dict):
            raise ConfigError(f"'{path}' should be a mapping of settings, with 'policy' a mapping as well.")
        policy = values.pop("policy", {})
        for given, known in ((values, cls), (policy, PolicyConfig)):
            unknown = given.keys() - {f.name for f in fields(known)}
            if unknown:
                raise ConfigError(f"'{path}' has the unknown setting '{min(unknown)}'.")
        try:
            return cls(**values, policy=PolicyConfig(**policy))
        except TypeError as error:
            raise ConfigError(f"'{path}' has a setting of the wrong type: {error}.") from error


class SupervisedTrainer:
    """Fits a policy to samples; the state on disk restores it, bit for bit where the length is given in steps."""

    def __init__(self, policy: SmallPolicy, samples: Samples, config: TrainConfig, out: Path) -> None:
        """Prepares a fit, or takes up the one that `out` holds.

        Raises:
            CheckpointError: the state in `out` is of another model.
        """
        self.policy, self.samples, self.config, self.out = policy, samples, config, out
        self.network = policy.network
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay
        )
        self.step, self.elapsed = 0, 0.0
        self._rows = [np.flatnonzero(samples.task == i) for i in range(len(samples.tasks))]
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
        inputs, actions, places = self._batch()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.network(inputs)
        terms = behaviour_loss(outputs, actions, places)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self.optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _batch(self) -> tuple[Inputs, torch.Tensor, torch.Tensor]:
        """A batch with every task equally often, drawn from seed and step alone: a resumed run sees the same."""
        rng = np.random.default_rng([self.config.seed, self.step])
        tasks = rng.integers(len(self._rows), size=self.config.batch_size)
        rows = np.array([rng.choice(self._rows[task]) for task in tasks])
        inputs = self.samples.inputs(rows, self.policy.tokenizer)
        hidden = torch.from_numpy(rng.random(inputs.words.shape) < self.config.word_dropout) & (inputs.words > 0)
        words = torch.where(hidden, torch.ones_like(inputs.words), inputs.words)
        return Inputs(inputs.images, inputs.state, words), self.samples.actions[rows], self.samples.places[rows]

    def _log(self, losses: dict[str, float]) -> None:
        line = {"step": self.step, "elapsed": round(self.elapsed, 2)} | {k: round(v, 5) for k, v in losses.items()}
        with (self.out / LOG_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train policy`."""
    parser.add_argument(
        "--method", choices=METHODS, default="sft", help="how to train (sft: supervised, on demonstrations)"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="SANS datasets or folders of episode files")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the new checkpoint; a stopped training goes on there"
    )
    parser.add_argument("--init", help="checkpoint to start from: a shipped name or a folder (default: fresh weights)")
    parser.add_argument("--config", type=Path, help="YAML of training settings (see config/policy_small.yaml)")
    parser.add_argument("--minutes", type=float, help="training time (default: 5)")
    parser.add_argument("--steps", type=int, help="number of steps, instead of or besides --minutes")
    parser.add_argument(
        "--demonstrations", type=int, default=0, help="first record so many in the tabletop into the first --data"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=["pick_place", "push", "stack", "sweep"], help="for --demonstrations"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes for --demonstrations")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the training (small steps gain nothing from more)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains a policy and writes its checkpoint; gives the folder and the last losses."""
    config = TrainConfig.from_yaml(args.config) if args.config else TrainConfig()
    if args.minutes is None and args.steps is None:
        args.minutes = 5.0
    for name in ("minutes", "steps"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ConfigError(f"--{name} must be positive, but is {getattr(args, name)}.")
    torch.set_num_threads(args.threads)
    recorded = collect(args.data[0], args.tasks, args.demonstrations, args.workers)
    policy, samples = _prepare(args.init, config, args.data)
    trainer = SupervisedTrainer(policy, samples, config, args.out)
    losses = trainer.fit(args.minutes, args.steps)
    policy.save_pretrained(args.out)
    return {
        "checkpoint": str(args.out),
        "steps": trainer.step,
        "minutes": round(trainer.elapsed / 60, 2),
        "decisions": len(samples),
        "demonstrations_recorded": recorded,
        "parameters": sum(p.numel() for p in policy.network.parameters()),
        "losses": losses,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the result for people."""
    print(f"Trained {result['steps']} steps in {result['minutes']} min on {result['decisions']} decisions.")
    print("Losses: " + ", ".join(f"{name} {value:.3f}" for name, value in result["losses"].items()))
    print(f"The checkpoint is in {result['checkpoint']}")


def _prepare(init: str | None, config: TrainConfig, data: Sequence[Path]) -> tuple[SmallPolicy, Samples]:
    if init is not None:
        policy = SmallPolicy.from_pretrained(find("policy", init))
        return policy, build_samples(read_episodes(data), policy.config)
    samples = build_samples(read_episodes(data), config.policy)
    vocabulary = WordTokenizer.from_texts(samples.instructions).vocabulary
    torch.manual_seed(config.seed)
    return SmallPolicy(replace(config.policy, vocabulary=vocabulary)), samples
