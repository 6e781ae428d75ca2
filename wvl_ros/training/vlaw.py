"""VLAW's policy update (papers.md B4, B5): what is imagined and kept, and how it is mixed with real successes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.training.samples import Samples, even_chances
from wvl_ros.training.settings import require
from wvl_ros.training.supervised import TrainConfig

SOURCES = ("both", "real", "synthetic")


def _update() -> TrainConfig:
    return TrainConfig(learning_rate=3e-4)


@dataclass(frozen=True)
class VLAWSettings:
    """How a policy learns from real and imagined successes.

    Attributes:
        rollouts: imagined ones of each task (N; the paper's 500). temperature: of the policy's sampling in them.
        steps: updates of the policy (the paper's 2000).
        learn_from: 'both', 'real' (filtered behaviour cloning, the paper's baseline) or 'synthetic'.
        synthetic_share: of a batch; None takes the plain union, as the paper's Eq. 4 states (why not: papers.md D10).
        finding_share: the same of what a policy that searches for what is named learns to find it by; None: as
            synthetic_share. Where imagined successes are sampled, their actions are not, but what they tell of where
            things lie is as good as demonstrations.
        hard_starts: whether an imagined success counts the more, the rarer its start's successes are (1.02 - their
            share); else all count alike, which is the paper's.
        seed: of starts and sampling. update: of the supervised update; its `policy` table has no effect.
    """

    rollouts: int = 500
    temperature: float = 1.0
    steps: int = 2000
    learn_from: str = "both"
    synthetic_share: float | None = 0.5
    finding_share: float | None = None
    hard_starts: bool = True
    seed: int = 0
    update: TrainConfig = field(default_factory=_update)

    def __post_init__(self) -> None:
        require(self, ("rollouts", "steps"), lambda n: n >= 1, "at least 1", "VLAW's")
        require(self, ("temperature",), lambda x: x >= 0, "0 or more", "VLAW's")
        share = "in 0..1, or null for the plain union"
        require(self, ("synthetic_share",), lambda x: x is None or 0 <= x < 1, share, "VLAW's")
        share = "in 0..1, or null for synthetic_share"
        require(self, ("finding_share",), lambda x: x is None or 0 <= x < 1, share, "VLAW's")
        if self.learn_from not in SOURCES:
            raise UnknownNameError("source of successes", self.learn_from, SOURCES)


def hard_start_weights(starts: NDArray[np.int64], accepted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(R,) weights of rollouts from starts numbered (R,): 1.02 minus the share accepted from the same start."""
    counts = np.bincount(starts)
    share = np.bincount(starts, weights=accepted.astype(float)) / np.maximum(1, counts)
    return np.asarray(1.02 - share[starts])


def mixed_chances(
    samples: Samples, synthetic: NDArray[np.bool_], weights: NDArray[np.float64], share: float | None
) -> NDArray[np.float64]:
    """(N,) how likely each sample is to be drawn: every task equally often, of each `share` from synthetic episodes.

    Args:
        synthetic, weights: of each sample (N,). share: None leaves real and synthetic samples as many as they are. A
            task with one kind only takes that.
    """
    weighed = even_chances(samples) * weights
    chances = np.zeros(len(samples))
    for task in range(len(samples.tasks)):
        own = samples.task == task
        kinds = [part for part in (own & ~synthetic, own & synthetic) if part.any()]
        shares = [1.0] if len(kinds) == 1 else None if share is None else [1 - share, share]
        if shares is None:
            chances[own] = weighed[own] / weighed[own].sum()
            continue
        for part, portion in zip(kinds, shares, strict=True):
            chances[part] = portion * weighed[part] / weighed[part].sum()
    if not len(samples.tasks):
        raise ConfigError("There is no success to learn from.")
    return chances / chances.sum()
