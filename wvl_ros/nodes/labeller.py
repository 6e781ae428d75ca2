"""Tells the recorder what the operator says of an episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wvl_ros.nodes.node import WvlNode
from wvl_ros.srv import LabelEpisode

KEYS = {"s": "success", "n": "near_success", "f": "failure"}


class Labeller:
    """A client of the recorder's service `label_episode`."""

    def __init__(self, node: WvlNode) -> None:
        self._node = node
        self._client = node.create_client(LabelEpisode, "label_episode")

    def label(self, episode_id: str, outcome: str, then: Callable[[], None]) -> None:
        """Labels an episode ('': the one that is being recorded), and calls `then` when that has been answered."""
        if not self._client.service_is_ready():
            self._node.get_logger().warning("There is no recorder to note the label.")
            then()
            return
        request = LabelEpisode.Request(episode_id=episode_id, outcome=outcome, source="operator")

        def answered(future: Any) -> None:
            response = future.result()
            if not response.success:
                self._node.get_logger().error(response.message)
            then()

        self._client.call_async(request).add_done_callback(answered)
