"""`wvl train world-model`: fits the world model to a folder of episodes; may be killed and goes on where it was."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.blind import BlindBaseline, fit_blind
from wvl_ros.evaluation.imagined import write_sheet
from wvl_ros.evaluation.world_model import choose_threshold, evaluate, save_blind_file
from wvl_ros.training import checkpointing
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.slots import Slots, SlotSettings
from wvl_ros.training.tracking import fit_tracking, tracking_errors
from wvl_ros.world_model.instruction import collect_vocabulary
from wvl_ros.world_model.loading import save_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import has_bfloat16

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"


@dataclass
class WorldModelTraining:
    """Settings of a training run.

    Attributes:
        batch: slots. learning_rate: peak, after `warmup` updates, falling in a line to `final_share` of it.
        weight_decay, ema: of AdamW; of the averaged weights that are saved.
        rollout_length: frames a slot lives on its own predictions, on average. teacher_forcing: share of the run without that.
        full_noise: share of fresh slots trained at sigma 1; history_noise: largest noise on half of the true history frames.
        start_share, end_share: share of slots that begin at an episode's first frame, or in its last four.
        other_rigs: share of slots on episodes of other rigs than the calibrated one, when there are any.
        uncalibrated_share: share of slots on calibrated episodes that are told that they are not.
        change_weight: extra weight on patches that change. reward_weight, gripper_weight: of these two losses beside the image.
        checkpoint_seconds, validate_seconds: training time between. validation_episodes: episodes of one validation.
    """

    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 50
    final_share: float = 0.03
    weight_decay: float = 0.01
    ema: float = 0.995
    rollout_length: float = 8.0
    teacher_forcing: float = 0.25
    full_noise: float = 0.5
    history_noise: float = 0.06
    start_share: float = 0.25
    end_share: float = 0.1
    other_rigs: float = 0.06
    uncalibrated_share: float = 0.03
    change_weight: float = 2.0
    reward_weight: float = 0.1
    gripper_weight: float = 0.1
    seed: int = 0
    checkpoint_seconds: float = 120.0
    validate_seconds: float = 900.0
    validation_episodes: int = 60
    tracking_effort: float = 1.0
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = ("teacher_forcing", "full_noise", "start_share", "end_share", "other_rigs", "uncalibrated_share", "final_share")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")
        if self.batch < 1 or self.rollout_length < 1 or self.learning_rate <= 0 or not 0 <= self.ema < 1:
            raise ConfigError("batch and rollout_length must be at least 1, learning_rate positive, ema in 0..1.")

    @classmethod
    def load(cls, path: Path | None) -> WorldModelTraining:
        """From a YAML file with the tables `model` and `training`; None gives the defaults.

        Raises:
            ConfigError: no such file, not YAML, or an unknown key.
        """
        if path is None:
            return cls(model={"rig": "tabletop"})
        try:
            tables = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"The configuration '{path}' cannot be read: {error}") from error
        known = {f.name for f in fields(cls)} - {"model"}
        settings = dict(tables.get("training") or {})
        unknown = (set(tables) - {"model", "training"}) | (set(settings) - known)
        if unknown:
            raise ConfigError(f"'{path}' has unknown keys: {', '.join(sorted(unknown))}; known are: {', '.join(sorted(known))}.")
        return cls(**settings, model=dict(tables.get("model") or {}))


@dataclass
class Budget:
    """When a run ends: after so many updates, so many minutes of training time, or whichever is first."""

    steps: int | None
    minutes: float | None

    def done(self, step: int, seconds: float) -> float:
        """The share of the run that is behind, 0..1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


class Trainer:
    """The training loop's state: model, averaged model, optimizer, slots and generator, all on disk after each checkpoint."""

    def __init__(self, settings: WorldModelTraining, cache: FrameCache, out: Path) -> None:
        self.settings, self.cache, self.out = settings, cache, out
        self.generator = torch.Generator().manual_seed(settings.seed)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = build_model(settings, cache)
        self.average: WorldModel = copy.deepcopy(self.model).eval()
        self.slots = self._slots()
        self.optimizer: torch.optim.Optimizer
        self.step, self.seconds = 0, 0.0
        self.losses: dict[str, float] = {}
        self.fitted = False

    def prepare(self) -> None:
        """Takes up the state on disk, or fits the servo and starts."""
        path = self.out / STATE_FILE
        resumed = path.is_file()
        if resumed:
            tensors, facts = checkpointing.load_state(path)
            checkpointing.restore_module(self.model, tensors, "model")
            checkpointing.restore_module(self.average, tensors, "average")
        else:
            fit_tracking(self.model.tracking, self.cache, self.generator, self.settings.tracking_effort)
            self.average.tracking.load_state_dict(self.model.tracking.state_dict())
        self.model.tracking.requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, self.settings.learning_rate, weight_decay=self.settings.weight_decay, betas=(0.9, 0.99)
        )
        if resumed:
            checkpointing.restore_optimizer(self.optimizer, tensors)
            self.generator.set_state(tensors["generator"])
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            if facts["fingerprint"] == self.cache.fingerprint:
                self.slots.restore(tensors)
        else:
            self.log("servo", tracking_errors(self.model.tracking, self.cache))

    def checkpoint(self) -> None:
        """Writes the state and the averaged weights."""
        tensors = {
            **checkpointing.module_tensors(self.model, "model"),
            **checkpointing.module_tensors(self.average, "average"),
            **checkpointing.optimizer_tensors(self.optimizer),
            **self.slots.state(),
            "generator": self.generator.get_state(),
        }
        facts = {"step": self.step, "seconds": self.seconds, "fingerprint": self.cache.fingerprint}
        checkpointing.save_state(self.out / STATE_FILE, tensors, facts | {"settings": asdict(self.settings)})
        save_world_model(self.average, self.out)

    def update(self, done: float) -> None:
        """One update; `done` is the share of the run that is behind."""
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (self.step + 1) / settings.warmup)
        rate *= settings.final_share + (1 - settings.final_share) * (1 - done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        slots, cache = self.slots, self.cache
        slots.refill()
        going_on = slots.going_on(settings.rollout_length if done >= settings.teacher_forcing else 1.0)
        episode, index = slots.episode, slots.index
        after = cache.step(episode, index + 1)
        true = cache.frame(episode, index + 1)
        batch = len(episode)
        draw = torch.rand(batch, generator=self.generator)
        spread = torch.sigmoid(1.2 * torch.randn(batch, generator=self.generator))
        sigma = torch.where(going_on | (draw < settings.full_noise), torch.ones(batch), spread)
        noise = torch.randn(true.shape, generator=self.generator)
        level = sigma[:, None, None, None]
        noisy = ((1 - level) * true + level * noise).contiguous(memory_format=torch.channels_last)
        tokens = self.tokens[episode]
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            out = self.model(
                noisy, sigma, slots.last, slots.first, slots.first_kinematics, slots.kinematics,
                cache.chunk(episode, index), tokens, slots.calibrated,
            )  # fmt: skip
        parts = {
            "image": image_loss(out.frame, true, slots.last, slots.first, settings.change_weight),
            "reward": reward_loss(out.reward, cache.rewards[after], sigma),
            "gripper": gripper_loss(out.kinematics, cache.kinematics[after]),
        }
        loss = parts["image"] + settings.reward_weight * parts["reward"] + settings.gripper_weight * parts["gripper"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._average_weights()
        slots.advance(going_on, out.frame, out.kinematics)
        for name, value in parts.items():
            old = self.losses.get(name, float(value.detach()))
            self.losses[name] = 0.98 * old + 0.02 * float(value.detach())

    @property
    def tokens(self) -> Tensor:
        """Word numbers of every episode of the cache."""
        if not hasattr(self, "_tokens"):
            self._tokens = self.model.instruction.tokens(self.cache.instructions)
        return self._tokens

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        """Adds a line to the log."""
        with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": self.step, "seconds": round(self.seconds, 1), **facts}) + "\n")

    def _average_weights(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)

    def _slots(self) -> Slots:
        s, cache = self.settings, self.cache
        weights = torch.ones(len(cache))
        own = cache.calibrated > 0
        if bool(own.any()) and not bool(own.all()):
            weights = torch.where(own, (1 - s.other_rigs) / own.sum(), s.other_rigs / (~own).sum())
        if not bool((cache.frame_count[weights > 0] > 1).any()):
            raise ConfigError("No episode is long enough: the world model needs two frames, that is four control steps.")
        slots = SlotSettings(s.batch, s.history_noise, s.start_share, s.end_share, s.uncalibrated_share)
        return Slots(cache, slots, self.generator, weights)


def build_model(settings: WorldModelTraining, cache: FrameCache) -> WorldModel:
    """A fresh model for a cache: its vocabulary, and the cameras and limits of the rig it is told of."""
    from wvl_ros.worlds import droid

    arguments: dict[str, Any] = {
        "vocabulary": collect_vocabulary(cache.instructions),
        "max_linear": droid.MAX_LINEAR_DELTA,
        "max_rotation": droid.MAX_ROTATION_DELTA,
    }
    rig = settings.model.get("rig", "")
    if rig == "tabletop":
        from wvl_ros.worlds.tabletop import FLOOR, TabletopWorld

        calibration = TabletopWorld().camera_calibration()
        arguments["lowest_tcp"] = FLOOR
        arguments["cameras"] = [
            {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in calibration[name].items()}
            for name in droid.CAMERAS
        ]
    elif rig:
        raise ConfigError(f"The cameras of the rig '{rig}' are not known; use 'tabletop', or '' for none.")
    try:
        return WorldModel(**(arguments | settings.model))
    except TypeError as error:
        raise ConfigError(f"The configuration's table `model` does not fit the world model: {error}") from error


def image_loss(frame: Tensor, true: Tensor, last: Tensor, first: Tensor, change_weight: float) -> Tensor:
    """20 x squared + absolute error, patches that differ from the last or the first frame counting more."""
    error = frame - true
    with torch.no_grad():
        change = sum((_change(true, other) for other in (last, first)), torch.zeros(()))
        weight = 1 + change_weight * change
        weight = (weight / weight.mean((2, 3), keepdim=True)).repeat_interleave(frame.shape[1] // weight.shape[1], 1)
    return 20 * (weight * error * error).mean() + (weight * error.abs()).mean()


def reward_loss(logit: Tensor, reward: Tensor, sigma: Tensor) -> Tensor:
    """Cross-entropy of the success state, weighted by 1 / (1 + sigma^2): a frame seen through more noise counts less."""
    each = F.binary_cross_entropy_with_logits(logit, reward, reduction="none")
    return (each / (1 + sigma * sigma)).mean()


def gripper_loss(kinematics: Tensor, true: Tensor) -> Tensor:
    """Squared error of the gripper's position (what it holds is only seen in the images)."""
    gap = (kinematics[:, 18] - true[:, 18]) / 0.3
    return (gap * gap).mean()


def _change(a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, G, G): the largest change of each patch in each view, 0..1."""
    return ((a - b).abs().unflatten(1, (3, -1)).amax(2) * 2).clamp(max=1)


def train(
    settings: WorldModelTraining, data: Path, out: Path, budget: Budget, validation: Path | None = None
) -> dict[str, Any]:
    """Trains until the budget ends, from the state in `out` when there is one; the checkpoint is `out` itself.

    Returns:
        Updates, training seconds, losses and the last validation's figures.
    """
    out.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "size": int(settings.model.get("image_size", 64)),
        "patch": int(settings.model.get("patch", 4)),
        "actions_per_frame": int(settings.model.get("actions_per_frame", 3)),
        "rig": str(settings.model.get("rig", "")),
    }
    cache = open_cache(data, **arguments)
    held = open_cache(validation, **arguments) if validation else None
    trainer = Trainer(settings, cache, out)
    trainer.prepare()
    blind = _blind(trainer, out) if held is not None else None
    figures: dict[str, Any] = {}
    saved = validated = trainer.seconds
    bar = tqdm(desc="training", unit="update", initial=trainer.step, total=budget.steps, disable=None)
    trainer.model.train()
    while (done := budget.done(trainer.step, trainer.seconds)) < 1:
        before = time.perf_counter()
        trainer.update(done)
        trainer.seconds += time.perf_counter() - before
        bar.update()
        if trainer.step % 50 == 0:
            bar.set_postfix({"done": f"{100 * done:.0f} %", **{k: f"{v:.4f}" for k, v in trainer.losses.items()}})
            trainer.log("train", {name: round(value, 5) for name, value in trainer.losses.items()})
        if not math.isfinite(trainer.losses["image"]):
            raise ConfigError(f"Training diverged at update {trainer.step}; lower learning_rate and start in another folder.")
        if trainer.seconds - saved > settings.checkpoint_seconds:
            trainer.checkpoint()
            saved = trainer.seconds
        if held is not None and trainer.seconds - validated > settings.validate_seconds:
            figures = validate(trainer, held, blind)
            validated = trainer.seconds
    bar.close()
    if held is not None:
        figures = validate(trainer, held, blind, last=True)
    trainer.checkpoint()
    return {"out": str(out), "step": trainer.step, "seconds": round(trainer.seconds, 1), "losses": trainer.losses} | (
        {"validation": figures} if figures else {}
    )


def validate(trainer: Trainer, held: FrameCache, blind: BlindBaseline | None, last: bool = False) -> dict[str, Any]:
    """Own rollouts of validation episodes, logged and drawn; the last validation also chooses the success threshold."""
    count = min(len(held), trainer.settings.validation_episodes * (3 if last else 1))
    episodes = np.linspace(0, len(held) - 1, count).round().astype(int)
    figures, imagined = evaluate(trainer.average, held, episodes, blind=blind)
    if last:
        chances = [own.success_probability for own in imagined]
        threshold, frames = choose_threshold(chances, [held.outcomes[i] for i in episodes])
        for model in (trainer.model, trainer.average):
            model.register_to_config(success_threshold=threshold, success_frames=frames)
        figures["chosen"] = {"success_threshold": threshold, "success_frames": frames}
    trainer.log("validation", figures)
    picked = np.linspace(0, count - 1, min(6, count)).round().astype(int)
    sheet = trainer.out / f"validation_{trainer.step:06d}.png"
    write_sheet(sheet, held, episodes[picked], [imagined[i] for i in picked], int(trainer.average.config["patch"]))
    return figures


def _blind(trainer: Trainer, out: Path) -> BlindBaseline:
    from wvl_ros.evaluation.world_model import load_blind

    blind = load_blind(out, trainer.model)
    if blind is None:
        blind = fit_blind(trainer.cache, list(trainer.model.config["vocabulary"]))
        save_blind_file(out, blind)
    return blind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train world-model`."""
    parser.add_argument("--data", type=Path, required=True, help="folder of episodes (made by `wvl collect`)")
    parser.add_argument("--validation", type=Path, default=None, help="folder of held-out episodes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; a run that was stopped there goes on")
    parser.add_argument("--config", type=Path, default=None, help="YAML file (default: the small model)")
    parser.add_argument("--minutes", type=float, default=None, help="training time (default: 60, unless --steps is given)")
    parser.add_argument("--steps", type=int, default=None, help="updates")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains; returns what `show` prints."""
    if args.threads:
        torch.set_num_threads(args.threads)
    minutes = args.minutes if args.minutes is not None or args.steps is not None else 60.0
    settings = WorldModelTraining.load(args.config)
    return train(settings, args.data, args.out, Budget(args.steps, minutes), args.validation)


def show(result: dict[str, Any]) -> None:
    """Prints the run's end for people."""
    print(f"{result['step']} updates in {result['seconds'] / 60:.1f} minutes; the checkpoint is {result['out']}")
    if "validation" in result:
        figures = result["validation"]
        outcome = figures["outcome"]
        print(f"own rollouts: PSNR {figures['images']['psnr']} dB, SSIM {figures['images']['ssim']}, accuracy {outcome['accuracy']}")
        print(f"blind baseline: accuracy {outcome['blind']['accuracy']}")
