"""The one ROS node around any world: observations and status out, action chunks in, episodes on request."""

from __future__ import annotations

from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_srvs.srv import Trigger

from wvl_ros.action import RunEpisode
from wvl_ros.errors import WvlError
from wvl_ros.msg import ActionChunk, EpisodeStatus, Reward
from wvl_ros.nodes import qos
from wvl_ros.nodes.chunk_store import ChunkStore
from wvl_ros.nodes.episode_loop import EpisodeLoop
from wvl_ros.nodes.images import image_message, refill
from wvl_ros.nodes.messages import BASE_FRAME, camera_info, flange_pose, joint_state, read_chunk, to_time
from wvl_ros.nodes.node import Peer, WvlNode
from wvl_ros.nodes.parameters import declare
from wvl_ros.nodes.reports import EpisodeRequest, StepReport
from wvl_ros.sans.bags.topics import FINISHED, IDLE
from wvl_ros.srv import ResetWorld
from wvl_ros.worlds.droid import CAMERAS
from wvl_ros.worlds.interface import Observation, World
from wvl_ros.worlds.registry import make_world

CLOSE_TIMEOUT = 3.0  # s
CANCELLED = "cancelled"


class WorldNode(WvlNode):
    """A world behind relative topics.

    Publishes for each step, all with the stamp of its observation: `<camera>/image_raw` (rgb8) and
    `<camera>/camera_info` for DROID's three cameras, `joint_states`, `cartesian_position` (the flange in `base`),
    `reward`; also `episode_status` (kept for late joiners), `diagnostics` and, in lockstep, `clock`. Subscribes to
    `action_chunk`. The service `reset` starts an episode, `abort_episode` aborts it (the recorder does so when its disk
    is full), the action `run_episode` runs a whole one.

    In lockstep (`realtime` false) time is simulated: after each observation the world waits for the chunk that
    answers it, however long that takes. In real time it keeps 15 Hz by the wall clock: a chunk's actions whose time
    has passed are skipped, and without a chunk the arm holds its last commanded pose.

    Remap `action_chunk` into another namespace and the world follows that namespace's episodes step by step.
    """

    def __init__(self, imagined: bool = False) -> None:
        super().__init__("world_model_sim" if imagined else "world")
        name, settings, defaults = self._declare_parameters(imagined)
        own_chunks = f"{self.get_namespace().rstrip('/')}/action_chunk"
        topic = self.resolve_topic_name("action_chunk")
        self._follows = topic != own_chunks
        self._chunks = ChunkStore(follow=self._follows)
        self._create_publishers()
        self._policy = Peer(here=self._policy_here, gone=self._policy_gone)
        self.create_subscription(
            ActionChunk, "action_chunk", self._on_chunk, qos.CHUNK, event_callbacks=self._policy.events()
        )
        self._world: World | None = None
        self._loop = EpisodeLoop(
            name, lambda: self._make(name, settings), self, self._chunks, realtime=self._realtime, defaults=defaults
        )
        self._loop.start()
        # A group of its own: while a reset is awaited, all other callbacks must go on.
        self.create_service(ResetWorld, "reset", self._on_reset, callback_group=ReentrantCallbackGroup())
        self.create_service(Trigger, "abort_episode", self._on_abort)
        self._action = ActionServer(self, RunEpisode, "run_episode", self._run_episode, cancel_callback=self._on_cancel)
        self._goals: dict[bytes, EpisodeRequest] = {}
        self.create_timer(1.0, self._publish_diagnostics, clock=self.wall)

    def _declare_parameters(self, imagined: bool) -> tuple[str, dict[str, Any], EpisodeRequest]:
        name = "imagined"
        settings: dict[str, Any] = {}
        if imagined:
            text = "Name ('small') or folder of the world model's checkpoint."
            settings["checkpoint"] = declare(self, "checkpoint", "small", text)
        else:
            name = declare(self, "world", "tabletop", "Which world: 'tabletop' or 'recorded'.")
        text = "Keep 15 Hz by the wall clock; otherwise lockstep with the policy, on simulated time."
        self._realtime = declare(self, "realtime", False, text)
        defaults = EpisodeRequest(
            task=declare(self, "task", "", "Task of episodes that name none; '' takes the world's own."),
            instruction=declare(self, "instruction", "", "Instruction likewise; '' takes one of the task's wordings."),
            source=declare(
                self,
                "source",
                "",
                "Episode to start from: a bag, an episode file, a DROID folder or 'droid'; '' is fresh.",
            ),
            start=declare(self, "start", 0, "Step inside the source to start from.", least=0),
        )
        text = "Seed of episodes that are asked for with a negative one; negative draws it."
        self._seed = declare(self, "seed", -1, text, least=-1)
        for size in ("image_height", "image_width"):
            pixels = declare(self, size, 0, "Size of the pictures in px; 0 takes the world's own.", least=0)
            if pixels:
                settings[size] = pixels
        limit = declare(self, "max_steps", 0, "Steps after which an episode ends; 0 takes the world's own.", least=0)
        if limit:
            settings["max_steps"] = limit
        return name, settings, defaults

    def _create_publishers(self) -> None:
        def publisher(kind: type, topic: str) -> Any:
            return self.create_publisher(kind, topic, qos.OBSERVATION)

        self._images = {camera: publisher(Image, f"{camera}/image_raw") for camera in CAMERAS}
        self._pictures: dict[str, Image] = {}  # kept: a new one for each picture costs a millisecond
        self._infos = {camera: publisher(CameraInfo, f"{camera}/camera_info") for camera in CAMERAS}
        self._joints = publisher(JointState, "joint_states")
        self._pose = publisher(PoseStamped, "cartesian_position")
        self._reward = publisher(Reward, "reward")
        self._diagnostics = publisher(DiagnosticArray, "diagnostics")
        self._clock_publisher = None if self._realtime else publisher(ClockMessage, "clock")
        self._status = self.create_publisher(EpisodeStatus, "episode_status", qos.STATUS)
        self._status.publish(EpisodeStatus(state=IDLE))

    def _make(self, name: str, settings: dict[str, Any]) -> World:
        self._world = make_world(name, **settings)
        self.get_logger().info(f"The world '{name}' is ready.")
        return self._world

    # -- reports of the loop, in its thread ----------------------------------------------------------------------------

    def observed(self, observation: Observation, report: StepReport) -> None:
        """Publishes one observation; see `Stage`."""
        stamp = to_time(report.stamp)
        if self._clock_publisher is not None:
            self._clock_publisher.publish(ClockMessage(clock=stamp))
        for camera in CAMERAS:  # the pictures first: they take longest to arrive
            message = self._pictures.get(camera)
            if message is None or not refill(message, observation[camera], stamp):
                message = image_message(observation[camera], stamp, f"{camera}_optical_frame")
                self._pictures[camera] = message
            self._images[camera].publish(message)
        for camera in CAMERAS:
            matrix, frame = self._camera_matrix(camera), f"{camera}_optical_frame"
            self._infos[camera].publish(camera_info(observation[camera], matrix, stamp, frame))
        self._joints.publish(joint_state(observation, stamp))
        self._pose.publish(flange_pose(observation, stamp))
        reward = Reward(episode_id=report.episode_id, step=report.step, reward=report.reward)
        reward.header.stamp, reward.header.frame_id = stamp, BASE_FRAME
        reward.success_probability = report.success_probability
        reward.commanded_pose = np.asarray(report.commanded_pose, np.float64)
        self._reward.publish(reward)
        self.changed(report)

    def changed(self, report: StepReport) -> None:
        """Publishes the status; see `Stage`."""
        message = EpisodeStatus(episode_id=report.episode_id, state=report.state, step=report.step)
        message.header.stamp, message.header.frame_id = to_time(report.stamp), BASE_FRAME
        message.max_steps, message.seed, message.world = report.max_steps, report.seed, self._loop.world_name
        message.task, message.instruction, message.source = report.task, report.instruction, report.source
        message.outcome, message.message = report.outcome, report.message
        self._status.publish(message)
        if report.message == CANCELLED:  # somebody's wish, no fault
            self.get_logger().info(f"Episode {report.episode_id} ended at step {report.step}: {report.message}")
        elif report.message:
            self.get_logger().warning(f"Episode {report.episode_id} aborted at step {report.step}: {report.message}")
        elif report.state == FINISHED:
            self.get_logger().info(f"Episode {report.episode_id}: {report.outcome} after {report.step} steps.")

    def missing_chunk(self, step: int, seconds: float) -> None:
        """Says who is missing; see `Stage`."""
        topic = self.resolve_topic_name("action_chunk")
        quiet = "the policy is late" if self._realtime else "the policy is silent"
        who = quiet if self._policy.alive else f"no policy publishes on '{topic}'"
        if seconds and self._follows and self._policy.alive:
            return  # the world that leads may take its time
        if seconds:
            self.get_logger().warning(f"No action chunk for step {step} for {seconds:.0f} s: {who}.")
        else:
            self.get_logger().warning(
                f"No action chunk for step {step} in time ({who}): holding the last commanded pose."
            )

    def failed(self, error: Exception) -> None:
        """Ends the node; see `Stage`."""
        code = 2 if isinstance(error, WvlError) else 1
        self.call(lambda: self.fail(str(error) if code == 2 else f"The world broke: {error!r}", code))

    def _camera_matrix(self, camera: str) -> np.ndarray | None:
        calibrated = getattr(self._world, "camera_info", None)
        return calibrated(camera) if calibrated else None

    # -- callbacks, in the spinning thread -----------------------------------------------------------------------------

    def _policy_here(self) -> None:
        self._loop.republish()

    def _policy_gone(self) -> None:
        report = self._loop.report
        if self._loop.running and report is not None:
            self.get_logger().error(f"The policy node is gone: episode {report.episode_id} aborted.")
            self._loop.abort("the policy node is gone")

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            self._chunks.put(read_chunk(message))
        except WvlError as error:
            if self._chunks.accepts(message.episode_id):
                self.get_logger().error(f"A wrong action chunk was refused: {error}")
                self._loop.abort(str(error))

    async def _on_reset(self, request: ResetWorld.Request, response: ResetWorld.Response) -> ResetWorld.Response:
        wanted = self._request(request)
        self._loop.submit(wanted)
        try:
            response.episode_id = await self.awaitable(wanted.started)
            response.success = True
        except WvlError as error:
            response.message = str(error)
        return response

    def _on_abort(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._loop.running
        response.message = "" if response.success else "No episode is under way."
        self._loop.abort("abort_episode was called")
        return response

    async def _run_episode(self, goal: ServerGoalHandle) -> RunEpisode.Result:
        wanted = self._request(goal.request)
        wanted.on_step = lambda report: self._feed_back(goal, report)
        self._goals[bytes(goal.goal_id.uuid)] = wanted
        self._loop.submit(wanted)
        try:
            report = await self.awaitable(wanted.finished)
        except WvlError as error:
            goal.abort()
            return RunEpisode.Result(message=str(error))
        finally:
            del self._goals[bytes(goal.goal_id.uuid)]
        if report.state == FINISHED:
            goal.succeed()
        elif goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return RunEpisode.Result(
            episode_id=report.episode_id,
            outcome=report.outcome,
            steps=report.step,
            total_reward=report.total_reward,
            message=report.message,
        )

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        wanted = self._goals.get(bytes(goal.goal_id.uuid))
        if wanted is not None:
            wanted.interrupt = wanted.interrupt or CANCELLED
            self._chunks.wake()
        return CancelResponse.ACCEPT

    def _request(self, asked: Any) -> EpisodeRequest:
        seed = asked.seed if asked.seed >= 0 else self._seed
        return EpisodeRequest(asked.task, asked.instruction, asked.source, asked.start, seed)

    @staticmethod
    def _feed_back(goal: ServerGoalHandle, report: StepReport) -> None:
        goal.publish_feedback(
            RunEpisode.Feedback(
                step=report.step,
                max_steps=report.max_steps,
                reward=report.reward,
                success_probability=report.success_probability,
                frames_per_second=report.frames_per_second,
                instruction=report.instruction,
            )
        )

    def _publish_diagnostics(self) -> None:
        report = self._loop.report
        status = DiagnosticStatus(name=f"{self.get_fully_qualified_name()}: world", hardware_id=self._loop.world_name)
        status.level, status.message = DiagnosticStatus.OK, "running" if self._loop.running else "idle"
        stamp = Time()
        if report is not None:
            stamp = to_time(report.stamp)
            if self._loop.running and not self._policy.alive:
                status.level, status.message = DiagnosticStatus.WARN, "no policy"
            values = {
                "episode": report.episode_id,
                "step": report.step,
                "frames_per_second": f"{report.frames_per_second:.1f}",
                "late_steps": report.late_steps,
            }
            status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = stamp
        self._diagnostics.publish(message)

    def close(self) -> None:
        """Aborts the running episode and tells everybody."""
        self._loop.close(CLOSE_TIMEOUT)
        self._status.wait_for_all_acked(Duration(seconds=0.5))
