"""A training run of the world model from its start to the checkpoint that is kept; may be stopped and goes on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.blind import BlindBaseline, fit_blind, load_blind, save_blind_file
from wvl_ros.training import checkpointing
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.processes import Processes
from wvl_ros.training.validation import Verdict, best, draw, exhausted, validate
from wvl_ros.training.world_model_data import cache_shape, chosen, open_data
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining
from wvl_ros.training.world_model_trainer import Trainer
from wvl_ros.world_model.large import CLASSES

SIZES = {"SVDWorldModel": "svd", "CosmosWorldModel": "cosmos"}
BEST_FILE, RESULT_FILE = "best.safetensors", "result.json"
_LOG_EVERY = 50  # updates
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


@dataclass(frozen=True)
class Sources:
    """What a run learns from: episodes at `data`, old ones at `replay`, held-out ones at `validation`, those of which
    only the steps are looked at, to learn how things move, at `motions`; `start` is the model that is fine-tuned, with
    LoRA of `lora_rank` where that is not 0.
    """

    data: Path
    validation: Path | None = None
    replay: Path | None = None
    start: Any = None
    lora_rank: int = 0
    motions: Path | None = None


def train(settings: WorldModelTraining, sources: Sources, out: Path, budget: Budget) -> dict[str, Any]:
    """Trains until the budget ends, from the state in `out` when there is one; the checkpoint is `out` itself.

    Returns:
        Updates, training seconds, losses and the last validation's figures; `stopped` after Ctrl-C.

    Raises:
        ConfigError: settings, data or memory do not allow it, or the loss is not a number any more.
    """
    processes = Processes.join()
    try:
        with _explained(settings):
            return _kind(sources.start)(settings, sources, out, budget, processes).run()
    finally:
        processes.leave()


def _kind(start: Any) -> type[Run]:
    if type(start).__name__ not in CLASSES:
        return Run
    from wvl_ros.training.large_run import LargeRun

    return LargeRun


class Run:
    """One run: updates, checkpoints and validations in turn, then the end."""

    def __init__(
        self, settings: WorldModelTraining, sources: Sources, out: Path, budget: Budget, processes: Processes
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        if sources.start is not None:
            settings = settings.for_fine_tuning(bool(sources.lora_rank))
        self.settings, self.out, self.processes = settings, out, processes
        model = sources.start.config if sources.start is not None else settings.model
        shape = cache_shape(model)
        data = open_data(settings, model, sources.data, sources.replay, sources.motions)
        self.held: FrameCache | None = None
        if sources.validation is not None:
            self.held = chosen(open_cache(sources.validation, **shape), settings, sources.validation)
        self.validates = self.held is not None
        self.trainer: Any = Trainer(
            settings, data, out, start=sources.start, lora_rank=sources.lora_rank, processes=processes
        )
        self.whole = budget
        # With LoRA all that is learned stays in the adapter.
        self.fit_share = 0.0 if sources.lora_rank else settings.reward_fit_share * (1 if self.trainer.joint else 2)
        self.budget = budget.without(self.fit_share)
        self.blind: BlindBaseline | None = None

    def run(self) -> dict[str, Any]:
        """See `train`."""
        trainer, budget = self.trainer, self.budget
        trainer.prepare()
        if self.held is not None and self.processes.main:
            self.blind = self._blind(trainer)
        done = budget.done(trainer.step, trainer.seconds)
        earlier = checkpointing.read_json(self.out / RESULT_FILE)
        if earlier is not None and earlier["step"] == trainer.step and (done >= 1 or self._exhausted()):
            return earlier
        stopped = self._update_until_done()
        trainer.checkpoint()
        result: dict[str, Any] = {
            "out": str(self.out), "step": trainer.step, "seconds": round(trainer.seconds, 1), "losses": trainer.losses
        }  # fmt: skip
        if stopped:
            result |= {"stopped": True, "exit_code": 128 + signal.SIGINT}
        elif self.processes.main:
            with _threads(self.processes.count):
                result |= self._finish()
            checkpointing.write_json(self.out / RESULT_FILE, result)
        self.processes.wait()
        trainer.journal.close()
        return result

    def _update_until_done(self) -> bool:
        """Whether it was stopped before the end."""
        trainer, settings, budget = self.trainer, self.settings, self.budget
        trainer.model.train()
        saved = validated = trainer.seconds
        with _stop_signal() as asked, self._bar() as bar:
            while (done := budget.done(trainer.step, trainer.seconds)) < 1 and not self._exhausted():
                before = time.perf_counter()
                trainer.update(done)
                mine = [time.perf_counter() - before if self.processes.main else 0.0, float(bool(asked))]
                spent, stop = self.processes.sum(mine)  # all must count alike
                trainer.seconds += spent
                self._show(bar, budget.done(trainer.step, trainer.seconds))
                if stop:
                    return True
                if trainer.seconds - saved > settings.checkpoint_seconds:
                    trainer.checkpoint()
                    saved = trainer.seconds
                if self.validates and trainer.seconds - validated > settings.validate_seconds:
                    self._validate()
                    validated = saved = trainer.seconds
        return False

    def _validate(self) -> None:
        """Own rollouts of validation episodes; the best checkpoint so far is kept as the run's result."""
        trainer = self.trainer
        if self.processes.main:
            with _threads(self.processes.count):
                verdict = self._look(self.settings.validation_episodes, f"validation_{trainer.step:06d}", "validation")
                trainer.validations.append(verdict.facts())
                if best(self._verdicts()) == len(trainer.validations) - 1:
                    self._keep(verdict)
        trainer.validations = self.processes.copy_object(trainer.validations)
        trainer.checkpoint()

    def _keep(self, verdict: Verdict) -> None:
        tensors = checkpointing.module_tensors(self.trainer.average, "average")
        checkpointing.save_state(self.out / BEST_FILE, tensors, verdict.facts())
        self.trainer.save(self.out)

    def _look(self, count: int, name: str, kind: str) -> Verdict:
        assert self.held is not None
        trainer = self.trainer
        verdict, figures, episodes, imagined = validate(trainer.average, self.held, self.blind, count, trainer.step)
        self.figures = figures
        sheet = draw(self.out, name, self.held, episodes, imagined, int(trainer.average.config["patch"]))
        trainer.log(kind, figures)
        trainer.journal.picture(kind, sheet, trainer.step)
        return verdict

    def _finish(self) -> dict[str, Any]:
        """Fits the reward head of the best checkpoint once more, on what it draws; chooses the threshold."""
        trainer, result = self.trainer, {}
        if self.held is not None:
            verdicts = self._verdicts()
            if not verdicts or verdicts[-1].step < trainer.step:
                name = f"validation_{trainer.step:06d}"
                verdicts.append(self._look(self.settings.validation_episodes, name, "validation"))
            kept = verdicts[best(verdicts)]
            if kept.step < trainer.step:
                tensors, _ = checkpointing.load_state(self.out / BEST_FILE)
                checkpointing.restore_module(trainer.average, tensors, "average")
            result["kept"] = kept.facts()
        if self.fit_share:
            result["reward_fit"] = self._fit_reward()
            trainer.log("reward_fit", result["reward_fit"])
        if self.held is not None:
            self._look(3 * self.settings.validation_episodes, "validation", "final")
            result["validation"] = self.figures
        trainer.save(self.out)
        return result

    def _fit_reward(self) -> dict[str, Any]:
        trainer, share = self.trainer, self.settings.reward_fit_share
        names = trainer.slots.names
        generator = torch.Generator().manual_seed(self.settings.seed + 1)
        limit: dict[str, Any] = {}
        if self.whole.minutes is not None:
            limit["seconds"] = 60 * self.whole.minutes * share
        if self.whole.steps is not None:
            limit["updates"] = max(1, round(self.whole.steps * share))
        figures: dict[str, Any] = {}
        if not trainer.joint:
            from wvl_ros.training.classifier_fit import fit_classifier

            own = limit | ({"updates": self.whole.steps} if self.whole.steps else {})  # as many as the joint head has
            figures["classifier"] = fit_classifier(trainer.average, trainer.cache, names, **own, generator=generator)
        from wvl_ros.training.reward_fit import fit_reward

        return figures | fit_reward(trainer.average, trainer.cache, names, **limit, generator=generator)

    def _verdicts(self) -> list[Verdict]:
        return [Verdict(**facts) for facts in self.trainer.validations]

    def _exhausted(self) -> bool:
        return exhausted(self._verdicts(), self.settings.patience)

    def _blind(self, trainer: Trainer) -> BlindBaseline:
        blind = load_blind(self.out, trainer.model)
        if blind is None:
            blind = fit_blind(trainer.data.own, list(trainer.model.config["vocabulary"]))
            save_blind_file(self.out, blind)
        return blind

    def _bar(self) -> Any:
        return tqdm(desc="training", total=1.0, bar_format=_BAR, disable=None if self.processes.main else True)

    def _show(self, bar: Any, done: float) -> None:
        trainer = self.trainer
        bar.update(done - bar.n)
        if trainer.step % _LOG_EVERY == 0:
            losses = {name: round(value, 5) for name, value in trainer.losses.items()}
            bar.set_postfix({"update": trainer.step, **{name: f"{value:.4f}" for name, value in losses.items()}})
            trainer.log("train", {**losses, "learning_rate": trainer.rate})


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that is not empty once the run was asked to stop (Ctrl-C, SIGTERM); a second Ctrl-C stops at once.

    torchrun sends a SIGTERM after the Ctrl-C that all have heard: that is the same wish once more.
    """
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """All processors for this one while the others wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(before * processes)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _explained(settings: WorldModelTraining) -> Iterator[None]:
    """Out of memory as a sentence with the setting to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
            raise
        raise ConfigError(
            f"Out of memory with a batch of {settings.batch}: lower `batch` in the configuration's table `training` "
            "(then `validation_episodes`, then the model's `channels`) and run the command again; it goes on from the "
            "last checkpoint."
        ) from error


def fine_tuning(settings: WorldModelTraining, model: Any) -> WorldModelTraining:
    """Settings that fit the model a run starts from.

    Raises:
        ConfigError: the configuration's table `model` says something else of it.
    """
    table = dict(settings.model)
    size, own_size = table.pop("size", "small"), SIZES.get(type(model).__name__, "small")
    if size != own_size and "size" in settings.model:
        raise ConfigError(f"The configuration is for a model of size '{size}', but the checkpoint is '{own_size}'.")
    for name, value in table.items():
        own = model.config.get(name)
        if (list(own) if isinstance(own, tuple) else own) != value:
            raise ConfigError(
                f"The checkpoint has `{name}` {own}, but the configuration says {value}; leave the table `model` out."
            )
    return replace(settings, model={})
