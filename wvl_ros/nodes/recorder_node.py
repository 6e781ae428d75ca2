"""The recorder node: one bag an episode from raw subscriptions, then its video and contact sheet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger

from wvl_ros.errors import ConfigError, WvlError
from wvl_ros.msg import EpisodeStatus, RecordedEpisode
from wvl_ros.nodes import qos
from wvl_ros.nodes.allocation import keep_freed_memory
from wvl_ros.nodes.discovery import TopicFinder, matching, message_class
from wvl_ros.nodes.node import Peer, WvlNode
from wvl_ros.nodes.parameters import declare
from wvl_ros.nodes.recording import EpisodeRecorder, RecorderSettings
from wvl_ros.nodes.rendering import Renderer
from wvl_ros.sans.bags.part_folder import unfinished
from wvl_ros.sans.bags.recording import RecordedTopic, RecordingReport, known_topics
from wvl_ros.srv import LabelEpisode

LOOK = 1.0  # s between two looks for new topics
LAST_WORDS = 0.5  # s in which the last words of nodes that were stopped with this one arrive


class RecorderNode(WvlNode):
    """Writes `<out>/<episode_id>/bag` for each episode of its namespace, and `rollout.mp4` and `contact_sheet.png`
    beside it.

    Records all topics of its namespace (but hidden ones), also those that appear later. A bag has its final name when
    it is whole; until then its folder is hidden and named `.part`, and `wvl bag repair` makes a bag of it should the
    recorder be killed. Messages are never decoded on their way, but for status and reward.

    `recorded_episode` appears when the recorder listens. It says when all of an episode's files are there, and again
    when its outcome has changed: the service `label_episode` sets it, during the episode or later.
    """

    def __init__(self) -> None:
        super().__init__("recorder")
        keep_freed_memory()
        self.linger = LAST_WORDS
        settings, render = self._settings()
        self._recorded: dict[str, RecordedEpisode] = {}
        self._reports: dict[str, RecordingReport] = {}
        self._topics = known_topics(settings.namespace, settings.reference)
        self._recorder = EpisodeRecorder(settings, self._topics, self)
        self._renderer = Renderer(partial(self.call_with, self._announce)) if render else None
        self._recorder.start()
        if self._renderer:
            self._renderer.start()
        self._publisher: Any = None
        self._world = Peer(gone=self._recorder.world_gone)
        self._silent = {topic for topic in self._topics if topic.endswith("/episode_status")}
        for topic in self._topics.values():
            if topic.name not in self._silent:
                self._record(topic, message_class(topic.kind), qos.RECORDING)
        status = f"{settings.namespace.rstrip('/')}/episode_status"
        for name in self._silent:
            events = self._world.events() if name == status else None
            self.create_subscription(
                EpisodeStatus, name, partial(self._on_status, name), qos.STATUS, raw=True, event_callbacks=events
            )
        own = self.resolve_topic_name("recorded_episode")
        self._finder = TopicFinder(self, settings.namespace, {*self._topics, own}, self._found)
        self._abort = self.create_client(Trigger, "abort_episode")
        # A group of its own: a label waits for the recorder's thread, and messages must come in meanwhile.
        group = ReentrantCallbackGroup()
        self.create_service(LabelEpisode, "label_episode", self._on_label, callback_group=group)
        self.create_timer(LOOK, self._look, clock=self.wall)
        self._look()
        self.get_logger().info(f"Recording to {settings.out}.")
        self._warn_of_leftovers(settings)

    def _settings(self) -> tuple[RecorderSettings, bool]:
        out = Path(declare(self, "out", "recordings", "Folder of the recordings.")).expanduser().resolve()
        render = declare(self, "render", True, "Whether to render a video and a contact sheet of each episode.")
        text = "Namespace of a second world to record and show beside this one, for instance '/real'; '' for none."
        reference = str(declare(self, "reference", "", text)).rstrip("/")
        text = "MB that must stay free on the disk: with less, an episode is stopped and no new one is recorded."
        free = declare(self, "min_free_mb", 1000, text, least=0)
        facts = {
            "policy": declare(self, "policy_checkpoint", "", "Checkpoint of the policy that acts, noted in each bag."),
            "world_model": declare(self, "world_model_checkpoint", "", "Checkpoint of the world model, likewise."),
            "iteration": str(
                declare(self, "iteration", 0, "Iteration of the improvement loop, noted in each bag.", least=0)
            ),
        }
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"Recordings cannot be written to '{out}' ({error.strerror}); set out to another folder."
            ) from error
        return RecorderSettings(out, self.get_namespace(), reference, free * 1_000_000, facts), bool(render)

    def _warn_of_leftovers(self, settings: RecorderSettings) -> None:
        left = unfinished(settings.out)
        if left:
            self.get_logger().warning(
                f"{len(left)} unfinished recordings of a recorder that was killed are in {settings.out}; "
                f"`wvl bag repair {settings.out}` makes them readable."
            )

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def _record(self, topic: RecordedTopic, kind: type, profile: QoSProfile) -> None:
        events = SubscriptionEventCallbacks(incompatible_qos=lambda _: self._adapt(topic, kind, subscription))
        subscription: Any = self.create_subscription(
            kind, topic.name, partial(self._recorder.put, topic.name), profile, raw=True, event_callbacks=events
        )

    def _on_status(self, topic: str, data: bytes) -> None:
        """Every world has a status for late joiners. The subscriptions to it were made last, so where it arrives, the
        world knows all of them, and who sees our publisher knows that no message is lost.
        """
        self._recorder.put(topic, data)
        if self._silent:
            self._silent.discard(topic)
            if not self._silent:
                self._listen()

    def _listen(self) -> None:
        if self._publisher is None:
            self._publisher = self.create_publisher(RecordedEpisode, "recorded_episode", qos.STATUS)

    def _found(self, topic: RecordedTopic, kind: type, profile: QoSProfile) -> None:
        self._topics[topic.name] = topic
        self._record(topic, kind, profile)
        self.get_logger().info(f"Recording {topic.name} ({topic.kind}), too.")

    def _adapt(self, topic: RecordedTopic, kind: type, subscription: Any) -> None:
        """A publisher offers less than was asked for (camera drivers are often best effort): asks for that."""
        offers = [info.qos_profile for info in self.get_publishers_info_by_topic(topic.name)]
        if offers and self.destroy_subscription(subscription):
            self._record(topic, kind, matching(offers))

    def _look(self) -> None:
        self._finder.look()
        self._recorder.publishing({topic for topic in self._topics if self.count_publishers(topic)})

    # -- the service ---------------------------------------------------------------------------------------------------

    async def _on_label(self, request: LabelEpisode.Request, response: LabelEpisode.Response) -> LabelEpisode.Response:
        try:
            wanted = self._recorder.label(request.episode_id, request.outcome, request.source)
            response.message = await self.awaitable(wanted)
            response.success = True
        except WvlError as error:
            response.message = str(error)
        return response

    # -- the recorder's thread: see `Listener` -------------------------------------------------------------------------

    def began(self, episode_id: str) -> None:
        """Looks at once for topics that came with the episode."""
        self.call(self._look)

    def closed(self, report: RecordingReport, complaint: str) -> None:
        """Has the recording rendered, and says so afterwards."""
        logger = self.get_logger()
        if complaint:
            logger.error(f"Episode {report.episode_id} is marked aborted: {complaint}.")
        if report.missing:
            logger.warning(f"{report.missing} images are missing in {report.bag}.")
        logger.info(f"{report.bag}: {report.messages} messages, {report.outcome}.")
        self.call(lambda: self._reports.update({report.episode_id: report}))
        if self._renderer:
            self._renderer.put(report)
        else:
            self.call_with(self._announce, report, "", "", "")

    def labelled(self, report: RecordingReport) -> None:
        """Says the new outcome."""
        self.get_logger().info(f"{report.bag} is labelled {report.outcome} by the {report.outcome_source}.")
        self.call(lambda: self._relabel(report))

    def broke_off(self, episode_id: str, sentence: str) -> None:
        """Says that there will be no bag of this name."""
        self.call(lambda: self._publish(RecordedEpisode(episode_id=episode_id, outcome="aborted", message=sentence)))

    def stop_episode(self, sentence: str) -> None:
        """Says why, and has the world abort."""
        self.get_logger().error(sentence)
        self.call(lambda: self._abort.call_async(Trigger.Request()))

    def warn(self, sentence: str) -> None:
        """Says it."""
        self.get_logger().warning(sentence)

    def failed(self, error: Exception) -> None:
        """Ends the node."""
        sentence = str(error) if isinstance(error, WvlError) else f"Recording broke off: {error!r}."
        self.call(lambda: self.fail(sentence, 1))

    # -- announcements, in the spinning thread -------------------------------------------------------------------------

    def _announce(self, report: RecordingReport, video: str, sheet: str, problem: str) -> None:
        if problem:
            self.get_logger().warning(problem)
        report = self._reports.get(report.episode_id, report)  # it may have been labelled since
        message = RecordedEpisode(episode_id=report.episode_id, bag=str(report.bag), message=problem)
        message.outcome, message.outcome_source = report.outcome, report.outcome_source
        message.video, message.contact_sheet = video, sheet
        message.messages, message.missing = report.messages, report.missing
        self._publish(message)

    def _relabel(self, report: RecordingReport) -> None:
        self._reports[report.episode_id] = report
        message = self._recorded.get(report.episode_id)
        if message is not None:
            message.outcome, message.outcome_source = report.outcome, report.outcome_source
            self._publish(message)

    def _publish(self, message: RecordedEpisode) -> None:
        message.header.stamp = self.get_clock().now().to_msg()
        self._recorded[message.episode_id] = message
        self._listen()
        self._publisher.publish(message)

    def close(self) -> None:
        """Closes the open bag; videos that are not rendered yet are left to `wvl render`."""
        self._recorder.close(10.0)
        if self._renderer:
            self._renderer.close()
        self.run_calls()
        if self._publisher is not None:
            self._publisher.wait_for_all_acked(Duration(seconds=0.3))
