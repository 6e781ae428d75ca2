"""The blind baseline: the outcome guessed from actions, first pose and instruction, without any image.

Actions alone betray much of an outcome (when the gripper opens, how long it takes). A world model's outcome accuracy
means something only beside this figure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wvl_ros.training.checkpointing import load_state, module_tensors, restore_module, save_state
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model.instruction import InstructionEncoder
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.model import WorldModel

FILE = "blind_baseline.safetensors"


class BlindBaseline(nn.Module):
    """A GRU over an episode's commanded poses, one input a frame."""

    def __init__(self, vocabulary: list[str], actions_per_frame: int) -> None:
        super().__init__()
        self.instruction = InstructionEncoder(vocabulary, 16)
        self.norm = nn.BatchNorm1d(10 * actions_per_frame + 10, affine=False)
        self.gru = nn.GRU(10 * actions_per_frame + 10 + 16, 64, batch_first=True)
        self.out = nn.Linear(64, 1)

    def forward(self, plan: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B,) of success: plan (B, T, D), lengths (B,), word numbers (B, words)."""
        batch, steps, _ = plan.shape
        x = self.norm(plan.flatten(0, 1)).view(batch, steps, -1)
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        text = self.instruction(tokens)[:, None].expand(-1, steps, -1)
        hidden = self.gru(torch.cat([x, text], 2))[0]
        return self.out(hidden[torch.arange(batch), lengths - 1])[:, 0]


def plans(cache: FrameCache, episodes: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """What the baseline sees: (B, T, D) commanded states of each frame and the first state, 0-padded; lengths (B,)."""
    k = cache.actions_per_frame
    lengths = torch.as_tensor(cache.frame_count[episodes]) - 1
    result = torch.zeros(len(episodes), int(lengths.max()), 10 * k + 10)
    for row, episode in enumerate(episodes.tolist()):
        n, start = int(lengths[row]), int(cache.step_start[episode])
        packed = cache.kinematics[start : start + n * k + 1]
        states = Kinematics.unpack(packed[1:]).commanded_state().view(n, -1)
        first = Kinematics.unpack(packed[:1]).state().expand(n, -1)
        result[row, :n] = torch.cat([states, first], 1)
    return result, lengths


def fit_blind(
    cache: FrameCache, vocabulary: list[str], *, steps: int = 500, batch: int = 64, seed: int = 0
) -> BlindBaseline:
    """Trains the baseline on a cache; of its states along the way, the one best on a held-out sixth is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BlindBaseline(vocabulary, cache.actions_per_frame)
        usable = np.flatnonzero((cache.frame_count > 1).numpy())
        plan, lengths = plans(cache, usable)
        tokens = model.instruction.tokens([cache.instructions[i] for i in usable])
        truth = torch.tensor([float(cache.outcomes[i] == "success") for i in usable])
        order = torch.randperm(len(usable))
        held, rest = order[: len(order) // 6], order[len(order) // 6 :]
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
        best, best_state = -1.0, {name: t.clone() for name, t in model.state_dict().items()}
        for step in range(steps):
            model.train()
            rows = rest[torch.randint(len(rest), (batch,))]
            longest = int(lengths[rows].max())
            logits = model(plan[rows, :longest], lengths[rows], tokens[rows])
            loss = F.binary_cross_entropy_with_logits(logits, truth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 49 and len(held):
                model.eval()
                with torch.no_grad():
                    right = (model(plan[held], lengths[held], tokens[held]) > 0).float() == truth[held]
                if float(right.float().mean()) > best:
                    best = float(right.float().mean())
                    best_state = {name: t.clone() for name, t in model.state_dict().items()}
        model.load_state_dict(best_state)
        return model.eval()


@torch.no_grad()
def blind_scores(model: BlindBaseline, cache: FrameCache, episodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probability of success (N,) of some episodes of a cache, by the baseline."""
    plan, lengths = plans(cache, episodes)
    tokens = model.instruction.tokens([cache.instructions[i] for i in episodes])
    return np.asarray(torch.sigmoid(model(plan, lengths, tokens)), dtype=np.float64)


def save_blind_file(folder: Path, model: BlindBaseline) -> None:
    """Puts the blind baseline beside a checkpoint."""
    save_state(folder / FILE, module_tensors(model, "blind"), {"trained_on": "actions, first pose and instruction"})


def load_blind(folder: Path, model: WorldModel) -> BlindBaseline | None:
    """The blind baseline beside a checkpoint; None where there is none."""
    if not (folder / FILE).is_file():
        return None
    blind = BlindBaseline(list(model.config["vocabulary"]), int(model.config["actions_per_frame"]))
    restore_module(blind, load_state(folder / FILE)[0], "blind")
    return blind.eval()
