"""Judges by name, imported when asked for."""

from __future__ import annotations

from typing import Any

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.rewards.interface import Judge

JUDGES = ("reward_head", "visual", "vlm", "ground_truth", "operator")


def make_judge(name: str, checkpoint: str = "", threshold: float | None = None, **settings: Any) -> Judge:
    """The judge called `name`.

    Args:
        name: one of `JUDGES`.
        checkpoint: of 'reward_head' and 'visual' a shipped world model or a folder ('' takes 'small'); of 'vlm' the
            folder of a Qwen-VL model. The others have none.
        threshold: success is a probability above it; None takes the judge's own.
        settings: of 'vlm': see `VlmSettings`, `device` and `dtype` among them.

    Raises:
        UnknownNameError: no such judge.
        ConfigError: a threshold outside 0..1, a checkpoint too many or missing, or an impossible setting.
        CheckpointError: the weights are missing or do not fit.
    """
    if name not in JUDGES:
        raise UnknownNameError("judge", name, JUDGES)
    if threshold is not None and not 0 <= threshold < 1:
        raise ConfigError(f"A judge's threshold must lie in 0..1, below 1, but is {threshold}.")
    if settings and name != "vlm":
        raise ConfigError(f"The judge '{name}' has no setting '{min(settings)}'.")
    if name == "vlm":
        from wvl_ros.rewards.vlm.judge import VlmJudge

        if not checkpoint:
            raise ConfigError("The judge 'vlm' needs a checkpoint: the folder of a Qwen2.5-VL or Qwen3-VL model.")
        return VlmJudge.from_pretrained(checkpoint, threshold=threshold, **settings)
    if name == "reward_head":
        from wvl_ros.rewards.reward_head import RewardHead

        return RewardHead(checkpoint or "small", threshold)
    if name == "visual":
        from wvl_ros.rewards.visual import Visual

        return Visual(checkpoint or "small") if threshold is None else Visual(checkpoint or "small", threshold)
    from wvl_ros.rewards.known import GroundTruth, Operator

    if checkpoint:
        raise ConfigError(f"The judge '{name}' is no model and takes no checkpoint, but '{checkpoint}' was given.")
    kind = GroundTruth if name == "ground_truth" else Operator
    return kind() if threshold is None else kind(threshold)
