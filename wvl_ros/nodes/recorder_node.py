"""The recorder node: one bag an episode from raw subscriptions, then its video and contact sheet."""

from __future__ import annotations

import importlib
from pathlib import Path

from rclpy.duration import Duration

from wvl_ros.errors import ConfigError, WvlError
from wvl_ros.msg import RecordedEpisode
from wvl_ros.nodes import qos
from wvl_ros.nodes.node import Peer, WvlNode
from wvl_ros.nodes.parameters import declare
from wvl_ros.nodes.recording import EpisodeRecorder
from wvl_ros.nodes.rendering import Renderer
from wvl_ros.sans.bag_writer import RecordingReport
from wvl_ros.sans.topics import STEP_TOPICS, TOPICS


class RecorderNode(WvlNode):
    """Writes `<out>/<episode_id>/bag` for each episode of its namespace, and `rollout.mp4` and `contact_sheet.png`
    beside it.

    A bag has its final name when it is whole; until then its folder is hidden and named `.part`. Messages are never
    decoded on their way, but for status and reward. `recorded_episode` says when all of an episode's files are there.
    """

    def __init__(self) -> None:
        super().__init__("recorder")
        out = Path(declare(self, "out", "recordings", "Folder of the recordings.")).expanduser().resolve()
        render = declare(self, "render", True, "Whether to render a video and a contact sheet of each episode.")
        text = "Namespace of a second world to record and show beside this one, for instance '/real'; '' for none."
        reference = str(declare(self, "reference", "", text)).rstrip("/")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"Recordings cannot be written to '{out}' ({error.strerror}); set out to another folder."
            ) from error
        self._recorder = EpisodeRecorder(out, self.get_namespace(), reference, self._on_closed, self._on_failed)
        self._renderer = Renderer(self._announce) if render else None
        self._recorder.start()
        if self._renderer:
            self._renderer.start()
        world = Peer(gone=self._world_gone)
        for name, kind in TOPICS.items():
            self._record(name, kind, world if name == "episode_status" else None)
        if reference:
            for name in (*STEP_TOPICS, "episode_status"):
                self._record(f"{reference}/{name}", TOPICS[name], None)
        # The last thing made: who sees this publisher knows that the recorder listens.
        self._publisher = self.create_publisher(RecordedEpisode, "recorded_episode", qos.STATUS)
        self.get_logger().info(f"Recording to {out}.")

    def _record(self, name: str, kind: str, peer: Peer | None) -> None:
        package, _, message = kind.split("/")
        message_class = getattr(importlib.import_module(f"{package}.msg"), message)
        namespace = self.get_namespace().rstrip("/")
        topic = name if name.startswith("/") else f"{namespace}/{name}"
        profile = qos.STATUS if name.endswith("episode_status") else qos.OBSERVATION
        self.create_subscription(
            message_class,
            name,
            lambda data: self._recorder.put(topic, data),
            profile,
            raw=True,
            event_callbacks=peer.events() if peer else None,
        )

    def _world_gone(self) -> None:
        self._recorder.world_gone()

    # -- the recorder's and the renderer's threads ---------------------------------------------------------------------

    def _on_closed(self, recording: RecordingReport, reason: str) -> None:
        logger = self.get_logger()
        if reason:
            logger.error(f"Episode {recording.episode_id} is marked aborted: {reason}.")
        if recording.missing:
            logger.warning(f"{recording.missing} images are missing in {recording.bag}.")
        logger.info(f"{recording.bag}: {recording.messages} messages, {recording.outcome}.")
        if self._renderer:
            self._renderer.put(recording)
        else:
            self._announce(recording, "", "", "")

    def _announce(self, recording: RecordingReport, video: str, sheet: str, problem: str) -> None:
        if problem:
            self.get_logger().warning(problem)
        message = RecordedEpisode(episode_id=recording.episode_id, outcome=recording.outcome, bag=str(recording.bag))
        message.header.stamp = self.get_clock().now().to_msg()
        message.video, message.contact_sheet = video, sheet
        message.messages, message.missing = recording.messages, recording.missing
        self._publisher.publish(message)

    def _on_failed(self, error: Exception) -> None:
        sentence = str(error) if isinstance(error, WvlError) else f"Recording broke off: {error}."
        self.call(lambda: self.fail(sentence, 1))

    def close(self) -> None:
        """Closes the open bag; videos that are not rendered yet are left to `wvl render`."""
        self._recorder.close(5.0)
        if self._renderer:
            self._renderer.close()
        self._publisher.wait_for_all_acked(Duration(seconds=0.3))
