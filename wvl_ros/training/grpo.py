"""Group-relative policy optimisation, apart from any network: advantages, the clipped surrogate, what is left out.

The constants are SimpleVLA-RL's (papers.md C), which World-VLA-Loop's policy update inherits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.training.settings import require

REWARDS, EXPLORE = ("success", "chance"), ("chunk", "offset")
BASELINES = ("group", "running")
_LEAST_SPREAD = 0.05  # of a group's returns, below which it differs by chance alone


@dataclass(frozen=True)
class GRPOSettings:
    """How a policy practises and learns from it.

    Attributes:
        updates: of the policy. groups: starts an update; group_size: rollouts from each.
        latest: rollouts begin anywhere in the first so much of a recorded episode (a share; 0: at its first
            observation). Nearer to where episodes are decided less has to be imagined, and more of it is right (WoVR).
        attempts: rounds of practice an update at most, when groups are left out (see `lowest`).
        temperature: of the sampling while practising. explore: what is sampled: 'chunk', every number of it (see
            `noise.ChunkNoise`), or 'offset', a shift of where it leads (`noise.OffsetNoise`).
        baseline: what a rollout's return is compared with at a decision: 'group', the mean of its group (the paper's),
            or 'running', that of those in its group that are still running then. Whoever runs late has mostly failed;
            against the whole group's mean all that it does there would be blamed.
        epochs, minibatch: passes over an update's decisions, and decisions a gradient step.
        learning_rate: at the beginning; target_kl: mean divergence of a Gaussian component in an update, which the rate
            is steered towards by `kl_step` (0 keeps the rate). clip_norm: of gradients.
        reward: what a rollout is paid: 'success' (0 or 1, as in the paper), or 'chance' (a failure is paid the highest
            probability of success that one of its frames had: what almost succeeded teaches as well).
        clip_low, clip_high: the ratio is limited to 1 - clip_low .. 1 + clip_high.
        hold_weight: of a penalty for changing what `explore: offset` leaves as it is.
        kl_weight: of a penalty for leaving the first policy; 0 for none.
        lowest, highest: groups with a smaller or larger share of successes teach too little and are left out.
        check_every: updates between checks on the real world (0: none); check_episodes: of each task.
        margin: standard errors that real success may fall below its best before the run ends.
        disagreement_margin: how much larger a share of the imagined successes a second judge may turn down than in the
            first updates before the run ends: a policy that exploits the world model pleases its reward head alone.
        seed: of starts and sampling.
    """

    updates: int = 26
    groups: int = 64
    group_size: int = 8
    latest: float = 0.0
    attempts: int = 1
    temperature: float = 2.0
    explore: str = "chunk"
    baseline: str = "running"
    reward: str = "success"
    epochs: int = 2
    minibatch: int = 512
    learning_rate: float = 6e-5
    target_kl: float = 0.012
    kl_step: float = 1.3
    clip_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    hold_weight: float = 1.0
    kl_weight: float = 0.0
    lowest: float = 0.1
    highest: float = 0.9
    check_every: int = 5
    check_episodes: int = 20
    margin: float = 2.0
    disagreement_margin: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("updates", "groups", "attempts", "epochs", "minibatch", "check_episodes")
        require(self, counts, lambda n: n >= 1, "at least 1", "GRPO's")
        rates = ("temperature", "learning_rate", "clip_norm", "clip_low", "clip_high")
        require(self, rates, lambda x: x > 0, "positive", "GRPO's")
        require(self, ("group_size",), lambda n: n >= 2, "at least 2 (a group is compared)", "GRPO's")
        require(self, ("kl_step",), lambda x: x > 1, "above 1", "GRPO's")
        require(
            self,
            ("target_kl", "kl_weight", "hold_weight", "check_every", "disagreement_margin"),
            lambda x: x >= 0,
            "0 or more",
            "GRPO's",
        )
        require(self, ("latest",), lambda x: 0 <= x < 1, "a share below 1", "GRPO's")
        if self.reward not in REWARDS:
            raise UnknownNameError("reward of GRPO", self.reward, REWARDS)
        if self.explore not in EXPLORE:
            raise UnknownNameError("exploration of GRPO", self.explore, EXPLORE)
        if self.baseline not in BASELINES:
            raise UnknownNameError("baseline of GRPO", self.baseline, BASELINES)
        if not 0 <= self.lowest < self.highest <= 1:
            raise ConfigError(f"GRPO's lowest and highest are shares, but are {self.lowest} and {self.highest}.")


def group_advantages(rewards: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Advantages (G, N) of returns (G, N): a group's mean is taken off, and divided by its standard deviation."""
    mean = rewards.mean(1, keepdim=True)
    return (rewards - mean) / (rewards.std(1, keepdim=True) + epsilon)


def running_advantages(rewards: Tensor, running: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Advantages (G, N, D) at each decision of returns (G, N): the mean of those `running` (G, N, D) then is taken off,
    and divided by the group's standard deviation. Where all run it is `group_advantages`.
    """
    counts = running.sum(1, keepdim=True).clamp(min=1)
    mean = (rewards[..., None] * running).sum(1, keepdim=True) / counts
    return (rewards[..., None] - mean) * running / (rewards.std(1)[:, None, None] + epsilon)


def informative(rewards: Tensor, lowest: float, highest: float) -> Tensor:
    """(G,) bool: the groups of returns (G, N) in 0 .. 1 that differ and whose mean lies in `lowest` .. `highest`."""
    mean = rewards.mean(1)
    return (mean >= lowest) & (mean <= highest) & (rewards.std(1) > _LEAST_SPREAD)


def surrogate(
    log_probs: Tensor, old: Tensor, advantages: Tensor, counts: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """The loss to be minimised: the clipped ratio times the advantage, mean over all tokens that count.

    Args:
        log_probs, old: of every token under the present and the practising policy, of one shape.
        advantages, counts: broadcast to it; `counts` is 1 for tokens that were acted on, else 0.

    Returns:
        The loss and the share of tokens that were clipped, scalars.
    """
    ratio = (log_probs - old).exp()
    limited = ratio.clamp(1 - clip_low, 1 + clip_high)
    each = -torch.minimum(ratio * advantages, limited * advantages)
    counts = counts.expand_as(each).to(each.dtype)
    whole = counts.sum().clamp(min=1)
    clipped = ((ratio * advantages > limited * advantages).to(each.dtype) * counts).sum() / whole
    return (each * counts).sum() / whole, clipped.detach()


def steer(rate: float, divergence: float, target: float, step: float) -> float:
    """The next learning rate after an update that moved the policy by `divergence`: up or down by `step`."""
    if target == 0:
        return rate
    return rate / step if divergence > target else rate * step
