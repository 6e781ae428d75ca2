"""Finds the topics of a namespace that the recorder does not know by name, and how to subscribe to them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from wvl_ros.nodes import qos
from wvl_ros.sans.bags.message_definitions import find_definition, is_stamped
from wvl_ros.sans.bags.recording import RecordedTopic, make_qos

NOT_RECORDED = ("/rosout", "/parameter_events")


class TopicFinder:
    """Looks for topics below a namespace.

    Args:
        known: names that are recorded already, or never.
        found: called with each new topic, its message class and the QoS to subscribe with.
    """

    def __init__(
        self, node: Node, namespace: str, known: Iterable[str], found: Callable[[RecordedTopic, type, QoSProfile], None]
    ) -> None:
        self._node, self._prefix, self._found = node, f"{namespace.rstrip('/')}/", found
        self._known = {*known, *NOT_RECORDED}

    def look(self) -> None:
        """Reports what has appeared since the last look. A topic that cannot be recorded is named in one warning."""
        for topic, kinds in self._node.get_topic_names_and_types():
            if topic in self._known or not topic.startswith(self._prefix) or "/_" in topic:  # '_' hides a name
                continue
            offers = [info.qos_profile for info in self._node.get_publishers_info_by_topic(topic)]
            if not offers:
                continue
            self._known.add(topic)
            try:
                about = describe(topic, kinds, offers)
                self._found(about, message_class(about.kind), matching(offers))
            except (ImportError, AttributeError, LookupError) as error:
                self._node.get_logger().warning(f"'{topic}' is not recorded: {error}.")


def describe(topic: str, kinds: Sequence[str], offers: Sequence[QoSProfile]) -> RecordedTopic:
    """What a bag needs to know of a topic.

    Raises:
        LookupError: it has more than one type, or one without definition.
    """
    kind = kinds[0]
    if len(kinds) > 1:
        raise LookupError(f"its publishers do not agree on its type, {' or '.join(kinds)}")
    if not find_definition(kind):
        raise LookupError(f"there is no definition of {kind}; source the workspace that has it")
    profile = matching(offers)
    latched = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    offered = make_qos(reliable=profile.reliability == ReliabilityPolicy.RELIABLE, latched=latched)
    return RecordedTopic(topic, kind, offered, is_stamped(kind), latched)


def message_class(kind: str) -> Any:
    """The Python class of 'package/msg/Name'; raises ImportError or AttributeError where it is not installed."""
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def matching(offers: Sequence[QoSProfile]) -> QoSProfile:
    """The strictest QoS that receives from all publishers."""
    reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
    latched = all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
    return QoSProfile(
        depth=qos.RECORDING.depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
