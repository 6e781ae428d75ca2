"""Policies by name, imported when asked for."""

from __future__ import annotations

from wvl_ros.errors import CheckpointError, EpisodeError, UnknownNameError
from wvl_ros.policies.interface import Policy

_DEFAULT = "small"  # what launch files give when the user has not said a checkpoint
POLICIES = ("small", "replay", "random", "hold", "openvla_oft", "openpi")


def make_policy(name: str, checkpoint: str = "", source: str = "", start: int = 0) -> Policy:
    """The policy called `name`.

    Args:
        name: one of `POLICIES`.
        checkpoint: name or folder of the weights of 'small', '' takes those shipped; folder of those of 'openvla_oft';
            address of the policy server of 'openpi', such as 'ws://192.168.1.100:8000'.
        source, start: the episode that 'replay' replays, and from which step.

    Raises:
        UnknownNameError: no such policy.
        CheckpointError: the weights are missing or do not fit.
        EpisodeError: 'replay' without an episode, or an unreadable one.
        ConfigError: the checkpoint of 'openpi' is no address.
        PolicyServerError: the policy server is away, or serves no policy for DROID.
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
    if name == "openvla_oft":
        from wvl_ros.policies.openvla_oft.policy import OpenVLAPolicy

        if checkpoint in ("", _DEFAULT):
            raise CheckpointError("The policy 'openvla_oft' needs a folder of weights; give one as its checkpoint.")
        return OpenVLAPolicy.from_pretrained(checkpoint)
    if name == "openpi":
        from wvl_ros.policies.openpi.policy import OpenPiPolicy

        return OpenPiPolicy.from_address("" if checkpoint == _DEFAULT else checkpoint)
    raise UnknownNameError("policy", name, POLICIES)
