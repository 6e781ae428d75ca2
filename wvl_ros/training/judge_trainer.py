"""Fine-tunes a vision-language judge on labelled episodes: the answer it gives is to be the known outcome."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.rewards.quality import Quality, measure
from wvl_ros.rewards.truth import is_true
from wvl_ros.rewards.vlm.judge import VlmJudge
from wvl_ros.sans.episodes import EpisodeEntry
from wvl_ros.training import checkpointing
from wvl_ros.training.descent import Descent, Losses
from wvl_ros.training.journal import Journal
from wvl_ros.training.lora import ADAPTER_FOLDER, save_adapter
from wvl_ros.training.processes import Processes
from wvl_ros.training.settings import require
from wvl_ros.training.world_model_settings import WorldModelTraining

STATE_FILE = "training_state.safetensors"
_LOG_EVERY = 10  # updates
_OTHER_MODEL = "The saved training state in '{}' belongs to another model or rank of LoRA; train into another folder."


@dataclass(frozen=True)
class JudgeTraining:
    """How a judge is fine-tuned.

    Attributes:
        steps: updates (VLAW: 200). batch: episodes an update, half of them successes; large ones made others' judges
            say no to everything.
        lora: rank of the adapter that is trained; 0 trains all weights.
        learning_rate: peak, after a tenth of the run, falling in a line to a tenth; None takes 2e-4 with LoRA, 1e-5
            without.
        weight_decay: of AdamW. seed: of the adapter and the batches. save_every: seconds between saves of the state.
    """

    steps: int = 200
    batch: int = 8
    lora: int = 16
    learning_rate: float | None = None
    weight_decay: float = 0.0
    seed: int = 0
    save_every: float = 120.0

    def __post_init__(self) -> None:
        of = "The judge's training's"
        require(self, ("steps",), lambda n: n >= 1, "at least 1", of)
        require(self, ("batch",), lambda n: n >= 2, "at least 2 (a success and a failure)", of)
        require(self, ("lora", "weight_decay"), lambda n: n >= 0, "0 or more", of)
        require(self, ("learning_rate",), lambda x: x is None or x > 0, "positive", of)

    @property
    def descent(self) -> WorldModelTraining:
        """The same as `Descent` takes it."""
        rate = self.learning_rate or (2e-4 if self.lora else 1e-5)
        warmup = max(1, self.steps // 10)
        return WorldModelTraining(
            learning_rate=rate, warmup=warmup, final_share=0.1, weight_decay=self.weight_decay, seed=self.seed
        )


class JudgeTrainer:
    """Fits a judge; stopped, it goes on bit for bit where the state in `out` was saved.

    Episodes are computed one after another, so the memory is that of one and the result does not depend on the number
    of processes.

    Args:
        judge: what is trained. entries: labelled episodes; those whose outcome is unknown or a judge's opinion are left
            out. out: the checkpoint's folder.

    Raises:
        ConfigError: one of the two outcomes is missing, or the state in `out` is of another model.
    """

    def __init__(
        self,
        judge: VlmJudge,
        entries: Sequence[EpisodeEntry],
        settings: JudgeTraining,
        out: Path,
        processes: Processes | None = None,
    ) -> None:
        self.judge, self.settings, self.out = judge, settings, out
        self.processes = processes or Processes()
        self.rows = self.processes.share(settings.batch)
        self.entries = [entry for entry in entries if is_true(entry)]
        _require_both(self.entries, len(entries))
        success = np.array([entry.outcome == "success" for entry in self.entries])
        self._kinds = [np.flatnonzero(success), np.flatnonzero(~success)]
        self.step, self.seconds, self.losses = 0, 0.0, Losses()
        self.before: dict[str, Any] | None = None
        self._wrapper = self._prepare()
        self.journal = Journal(out, self.step, writes=self.processes.main)

    def fit(self, held: Sequence[EpisodeEntry] = ()) -> tuple[Quality | None, dict[str, Any] | None]:
        """Trains to the end and writes the checkpoint.

        Args:
            held: labelled episodes that are not trained on.

        Returns:
            The judge's quality on `held` after, and before as a table; None without `held`.

        Raises:
            ConfigError: the loss is not a number any more; the last state is kept.
        """
        if self.before is None and held:
            self.before = self.processes.copy_object(self._measure(held, "before training").to_dict())
            self.journal.add("before", self.step, self.seconds, self.before or {})
            self.save_state()
        self._update_until_done()
        after = self._measure(held, "after training") if held else None
        if after is not None:
            self.journal.add("after", self.step, self.seconds, after.to_dict())
        if self.processes.main:
            self._save()
        self.processes.wait()
        self.journal.close()
        return after, self.before

    def save_state(self) -> None:
        """Writes what a stopped training goes on from; every process must call it."""
        if self.processes.main:
            tensors: dict[str, Tensor] = {f"trained.{name}": p for name, p in self.trained.items()}
            tensors |= checkpointing.optimizer_tensors(self.descent.optimizer)
            facts = {"step": self.step, "seconds": self.seconds, "before": self.before, "losses": self.losses}
            checkpointing.save_state(self.out / STATE_FILE, tensors, facts | {"settings": asdict(self.settings)})
        self.processes.wait()

    def batch(self, step: int) -> NDArray[np.int64]:
        """Numbers of the entries of an update, both outcomes equally often, drawn from seed and step alone."""
        rng = np.random.default_rng([self.settings.seed, step])
        first = int(rng.integers(2))  # which outcome an odd batch has one more of
        halves = []
        for place in (0, 1):
            pool = self._kinds[(first + place) % 2]
            size = (self.settings.batch + 1 - place) // 2
            halves.append(rng.choice(pool, size, replace=len(pool) < size))
        return np.asarray(rng.permutation(np.concatenate(halves)))

    def _prepare(self) -> Any:
        """Chooses what is trained, as it was in the state on disk if there is one; returns peft's wrapper, or None."""
        model = self.judge.qwen.model
        self._dtype = model.dtype
        wrapper = _add_lora(model, self.settings.lora, self.settings.seed) if self.settings.lora else None
        self.trained: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            parameter.data = parameter.data.float()
        # The second name is that of before transformers 5.
        checkpoint = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        checkpoint({"use_reentrant": False})
        self.descent = Descent(self.settings.descent, list(self.trained.values()), self.processes, self.out)
        if (self.out / STATE_FILE).is_file():
            self._restore()
        return wrapper

    def _restore(self) -> None:
        tensors, facts = checkpointing.load_state(self.out / STATE_FILE)
        saved = {name.removeprefix("trained."): t for name, t in tensors.items() if name.startswith("trained.")}
        if saved.keys() != self.trained.keys():
            raise ConfigError(_OTHER_MODEL.format(self.out))
        for name, parameter in self.trained.items():
            if saved[name].shape != parameter.shape:
                raise ConfigError(_OTHER_MODEL.format(self.out))
            parameter.data.copy_(saved[name])
        checkpointing.restore_optimizer(self.descent.optimizer, tensors)
        self.step, self.seconds, self.before = int(facts["step"]), float(facts["seconds"]), facts["before"]
        self.losses.update(facts["losses"])

    def _update_until_done(self) -> None:
        model, steps = self.judge.qwen.model, self.settings.steps
        model.train()
        saved = self.seconds
        quiet = None if self.processes.main else True
        with tqdm(total=steps, initial=min(self.step, steps), desc="judge", unit="update", disable=quiet) as bar:
            while self.step < steps:
                began = time.perf_counter()
                self._update()
                mine = [time.perf_counter() - began if self.processes.main else 0.0]
                self.seconds += self.processes.sum(mine)[0]  # all must count alike
                bar.update()
                if self.step % _LOG_EVERY == 0 or self.step == steps:
                    told = {name: round(value, 5) for name, value in self.losses.items()}
                    bar.set_postfix(told)
                    self.journal.add("train", self.step, self.seconds, told | {"learning_rate": self.descent.rate})
                if self.seconds - saved > self.settings.save_every:
                    self.save_state()
                    saved = self.seconds
        self.save_state()
        model.eval()

    def _update(self) -> None:
        own = self.batch(self.step)[self.rows]
        judge = self.judge
        device = judge.qwen.model.device.type
        sums = {"loss": 0.0, "accuracy": 0.0}
        self.descent.start()
        for row in own:
            episode = self.entries[row].load()
            truth = torch.tensor([episode.success], device=judge.qwen.model.device)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = judge.logits([episode])
            loss = judge.words.loss(logits, truth)[0]
            (loss / len(own)).backward()
            sums["loss"] += float(loss.detach()) / len(own)
            right = (judge.words.probability(logits.detach()) > 0.5) == truth
            sums["accuracy"] += float(right) / len(own)
        self.descent.finish(self.step, self.step / self.settings.steps)
        self.step += 1
        self.losses.add(sums, self.processes)

    def _measure(self, held: Sequence[EpisodeEntry], when: str) -> Quality:
        self.judge.qwen.model.eval()
        quiet = None if self.processes.main else True
        return measure(self.judge, (entry.load() for entry in tqdm(held, desc=when, unit="episode", disable=quiet)))

    def _save(self) -> None:
        if self._wrapper is not None:
            save_adapter(self._wrapper, self.out / ADAPTER_FOLDER)
            self._wrapper.merge_and_unload()
        self.judge.qwen.model.to(self._dtype)
        self.judge.save(self.out)


def _require_both(entries: Sequence[EpisodeEntry], given: int) -> None:
    found = {entry.outcome == "success" for entry in entries}
    if len(found) == 2:
        return
    kind = "no outcomes" if not found else "only successes" if True in found else "only failures"
    raise ConfigError(
        f"A judge learns from successes and failures, but of the {given} episodes {kind} are known; add episodes of "
        "the other outcome, or label those there are with `wvl label`."
    )


def _add_lora(model: nn.Module, rank: int, seed: int) -> Any:
    """Puts an adapter beside every linear layer but the last and freezes all else; returns peft's wrapper."""
    from peft import LoraConfig, get_peft_model

    names = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear) and not n.endswith("lm_head")]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
