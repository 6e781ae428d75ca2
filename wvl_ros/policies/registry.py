"""Policies by name, imported when asked for."""

from __future__ import annotations

from wvl_ros.errors import EpisodeError, UnknownNameError
from wvl_ros.policies.interface import Policy

POLICIES = ("small", "replay", "random", "hold")


def make_policy(name: str, checkpoint: str = "", source: str = "", start: int = 0) -> Policy:
    """The policy called `name`.

    Args:
        name: one of `POLICIES`.
        checkpoint: name or folder of the weights of 'small'; '' takes those shipped.
        source, start: the episode that 'replay' replays, and from which step.

    Raises:
        UnknownNameError: no such policy.
        CheckpointError: the weights are missing or do not fit.
        EpisodeError: 'replay' without an episode, or an unreadable one.
    """
    if name == "small":
        from wvl_ros.checkpoints import find
        from wvl_ros.policies.small import SmallPolicy

        return SmallPolicy.from_pretrained(find("policy", checkpoint or "small"))
    if name == "replay":
        from wvl_ros.policies.replay import ReplayPolicy
        from wvl_ros.sans.sources import load_source

        episode = load_source(source)
        if episode is None:
            raise EpisodeError("The replay policy needs a recorded episode; give one, for instance source:=droid.")
        return ReplayPolicy(episode, start)
    if name == "random":
        from wvl_ros.policies.random import RandomPolicy

        return RandomPolicy()
    if name == "hold":
        from wvl_ros.policies.hold import HoldPolicy

        return HoldPolicy()
    raise UnknownNameError("policy", name, POLICIES)
