"""The runner node: runs episodes one after another on one or more worlds and shows how they go."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from rclpy.action import ActionClient

from wvl_ros.action import RunEpisode
from wvl_ros.msg import ActionChunk, EpisodeStatus, RecordedEpisode
from wvl_ros.nodes import qos
from wvl_ros.nodes.keyboard import Keyboard
from wvl_ros.nodes.labeller import KEYS, Labeller
from wvl_ros.nodes.node import Peer, WvlNode
from wvl_ros.nodes.parameters import declare
from wvl_ros.nodes.progress import EpisodeRow, Progress
from wvl_ros.sans.bags.topics import RUNNING

TICK = 0.1  # s
WARN = 5.0  # s of waiting between two warnings
RECORDER_GRACE = 1.5  # s that a recorder may start later than all others
LAG = 3.0  # s without progress after which a world that follows is given up
ABORT_GRACE = 4.0  # s for the world to abort an episode after a peer died
RENDER_GRACE = 120.0  # s for the recorder to finish its files


class Follower:
    """One world's action server and the goal that runs on it."""

    def __init__(self, node: RunnerNode, name: str) -> None:
        self.name = name
        self.client = ActionClient(node, RunEpisode, name)
        self.goal: Any = None
        self.running = False
        self.episode_id = ""  # of the episode under way
        self.step = 0
        self.moved = 0.0
        self.known = False
        # After the client: DDS tells of endpoints in their order, so a world whose status comes knows the client, too.
        # An answer to a client that the server has not discovered is lost (rmw_fastrtps waits 0.1 s for it).
        status = f"{name.rpartition('/')[0]}/episode_status" if "/" in name else "episode_status"
        self.peer = Peer(gone=lambda: node.peer_gone(f"the world node of '{node.resolve_topic_name(status)}'"))
        node.create_subscription(EpisodeStatus, status, self._on_status, qos.STATUS, event_callbacks=self.peer.events())

    @property
    def ready(self) -> bool:
        """Whether the world can take a goal and answer."""
        return self.known and self.client.server_is_ready()

    def _on_status(self, message: EpisodeStatus) -> None:
        self.known = True
        self.episode_id = message.episode_id if message.state == RUNNING else ""

    def cancel(self) -> None:
        """Asks the world to abort."""
        if self.running and self.goal is not None:
            self.goal.cancel_goal_async()


class RunnerNode(WvlNode):
    """Runs `episodes` episodes with seeds seed, seed + 1, ... through the `run_episode` actions of `worlds`.

    The first world is the one that counts; the others follow it and are stopped when it has finished. Ends with exit
    code 0; 1 when a node died or an episode was aborted; 2 when the world refused the input.

    In a terminal the keys s, n and f say that an episode succeeded, nearly did, or failed. An episode that is under way
    ends with that; between episodes it is said of the last one. The recorder notes it in the bag.
    """

    def __init__(self) -> None:
        super().__init__("runner")
        self._goal = {
            "task": declare(self, "task", "", "Task of every episode; '' leaves it to the world."),
            "instruction": declare(self, "instruction", "", "Instruction; '' takes one of the task's wordings."),
            "source": declare(self, "source", "", "Episode to start from; '' leaves it to the world."),
            "start": declare(self, "start", 0, "Step inside the source to start from.", least=0),
        }
        self._episodes = declare(self, "episodes", 1, "How many episodes to run.", least=1)
        self._seed = declare(self, "seed", 0, "Seed of the first episode; negative draws one each time.", least=-1)
        names = declare(
            self, "worlds", ["run_episode"], "Actions to run each episode on; the first is the one that counts."
        )
        text = "Topics that must have a publisher before the first episode starts."
        self._wait_for = declare(self, "wait_for", ["action_chunk"], text)
        self._rows: list[EpisodeRow] = []
        self._keyboard = Keyboard()
        self._labeller = Labeller(self)
        self._progress = Progress(self._episodes, keys=self._keyboard.live)
        self._worlds = [Follower(self, name) for name in names]
        policy = Peer(gone=lambda: self.peer_gone("the policy node"))
        self._recorder = Peer(gone=lambda: self.peer_gone("the recorder node"))
        self.create_subscription(
            ActionChunk, "action_chunk", lambda m: None, qos.CHUNK, event_callbacks=policy.events()
        )
        self.create_subscription(
            RecordedEpisode, "recorded_episode", self._on_recorded, qos.STATUS, event_callbacks=self._recorder.events()
        )
        self._recorded: dict[str, RecordedEpisode] = {}
        self._state = self._wait
        self._since = self._warned = time.monotonic()
        self._ready_since: float | None = None
        self._table_shown = False
        self.create_timer(TICK, self._tick, clock=self.wall)

    def _tick(self) -> None:
        for key in self._keyboard.typed():
            if key in KEYS:
                self._judge(KEYS[key])
        self._state()

    def _judge(self, outcome: str) -> None:
        """What the operator says of the episode under way, which it ends, or of the last one."""
        leader = self._worlds[0]
        if not self._rows or self._state == self._abort:
            return
        row = self._rows[-1]
        if leader.running:
            if row.judged or not leader.episode_id:  # it ends already, or has not begun
                return
            row.judged = outcome
            self._labeller.label(leader.episode_id, outcome, leader.cancel)  # before the bag closes with the episode
        elif row.episode_id:
            row.outcome = row.judged = outcome
            self._labeller.label(row.episode_id, outcome, lambda: self._progress.say(f"{row.episode_id}: {outcome}"))

    # -- states, called every tick -------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until everybody is there."""
        missing = [world.name for world in self._worlds if not world.ready]
        missing += [topic for topic in self._wait_for if not self.count_publishers(self.resolve_topic_name(topic))]
        now = time.monotonic()
        if missing:
            self._ready_since = None
            text = f"waiting for {', '.join(missing)}"
            self._progress.wait(text)
            if now - self._warned >= WARN:
                self._warned = now
                self.get_logger().warning(f"Still {text} after {now - self._since:.0f} s.")
            return
        self._ready_since = self._ready_since or now
        if self._recorder.alive or now - self._ready_since >= RECORDER_GRACE:
            self._start_episode()

    def _run(self) -> None:
        """While an episode runs."""
        self._progress.update(self._rows[-1])

    def _stop_followers(self) -> None:
        """When the first world has finished: the others may catch up with it, then they are stopped."""
        now = time.monotonic()
        busy = [world for world in self._worlds if world.running]
        for world in busy:
            if world.step >= self._rows[-1].step or now - world.moved > LAG:
                world.cancel()
        if not busy or now - self._since > 3 * LAG:
            self._next()

    def _abort(self) -> None:
        """When a node died: the episode is given a moment to be aborted in good order."""
        if not self._worlds[0].running or time.monotonic() - self._since > ABORT_GRACE:
            self._finish()

    def _collect(self) -> None:
        """Until the recorder has said where the files are."""
        waiting = [row for row in self._rows if row.episode_id and row.episode_id not in self._recorded]
        patience = RENDER_GRACE if self._recorder.alive else 0.0
        if not waiting or time.monotonic() - self._since > patience:
            self._show_table()
            self.done = True
        else:
            self._progress.wait(f"waiting for the recording of episode {waiting[0].number}")

    # -- transitions ---------------------------------------------------------------------------------------------------

    def _enter(self, state: Any) -> None:
        self._state, self._since = state, time.monotonic()

    def _start_episode(self) -> None:
        number = len(self._rows) + 1
        seed = self._seed + number - 1 if self._seed >= 0 else -1
        self._rows.append(EpisodeRow(number, seed))
        self._enter(self._run)
        for world in self._worlds:
            world.running, world.goal, world.step, world.moved = True, None, 0, time.monotonic()
            feedback = partial(self._on_feedback, world, self._rows[-1])
            sent = world.client.send_goal_async(RunEpisode.Goal(**self._goal, seed=seed), feedback_callback=feedback)
            sent.add_done_callback(partial(self._on_accepted, world, self._rows[-1]))

    def _next(self) -> None:
        if len(self._rows) < self._episodes:
            self._start_episode()
        else:
            self._finish()

    def _finish(self) -> None:
        for world in self._worlds:
            world.cancel()
        self._enter(self._collect)

    def peer_gone(self, who: str) -> None:
        """A node that was alive is not any more: says so and ends the work with exit code 1."""
        if self.done:
            return
        self.get_logger().error(f"{who[0].upper()}{who[1:]} is gone.")
        self.exit_code = 1
        if self._state != self._collect:
            for world in self._worlds:
                world.running = world.running and world.peer.alive > 0
                if "policy" not in who:  # without its policy, the world aborts by itself and says why
                    world.cancel()
            self._enter(self._abort)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _on_accepted(self, world: Follower, row: EpisodeRow, future: Any) -> None:
        world.goal = future.result()
        if not world.goal.accepted:
            self._refused(world, row, f"'{world.name}' accepts no episode.")
            return
        world.goal.get_result_async().add_done_callback(partial(self._on_result, world, row))

    def _on_feedback(self, world: Follower, row: EpisodeRow, message: Any) -> None:
        feedback = message.feedback
        if feedback.step != world.step:
            world.step, world.moved = feedback.step, time.monotonic()
        if world is self._worlds[0]:
            row.step, row.max_steps, row.reward = feedback.step, feedback.max_steps, feedback.reward
            row.rate, row.instruction = feedback.frames_per_second, feedback.instruction
            row.success_probability = feedback.success_probability

    def _on_result(self, world: Follower, row: EpisodeRow, future: Any) -> None:
        result = future.result().result
        world.running = False
        if not result.episode_id:
            self._refused(world, row, result.message)
            return
        if world is not self._worlds[0]:
            return
        row.episode_id, row.outcome, row.message = result.episode_id, result.outcome, result.message
        row.step, row.total_reward = result.steps, result.total_reward
        if row.judged:
            row.outcome, row.message = row.judged, "labelled by the operator"
        elif result.outcome == "aborted":
            self.exit_code = 1
        if self._state == self._run:
            self._enter(self._stop_followers)

    def _refused(self, world: Follower, row: EpisodeRow, sentence: str) -> None:
        world.running = False
        if world is not self._worlds[0]:
            self.get_logger().warning(f"'{world.name}' does not follow: {sentence}")
            return
        self._rows.remove(row)
        self.get_logger().error(sentence)
        self.exit_code = 2
        self._finish()

    def _on_recorded(self, message: RecordedEpisode) -> None:
        self._recorded[message.episode_id] = message
        for row in self._rows:
            if row.episode_id == message.episode_id:
                self._fill_in(row)

    def _fill_in(self, row: EpisodeRow) -> None:
        message = self._recorded.get(row.episode_id)
        if message is not None:
            row.bag, row.video, row.contact_sheet = message.bag, message.video, message.contact_sheet
            row.outcome, row.message = message.outcome, message.message or row.message

    def _show_table(self) -> None:
        if self._rows and not self._table_shown:
            for row in self._rows:
                self._fill_in(row)
            self._progress.table(self._rows)
        self._table_shown = True

    def close(self) -> None:
        """Stops what still runs and shows what there is."""
        self._keyboard.close()
        for world in self._worlds:
            world.cancel()
        self._show_table()

    def destroy_node(self) -> None:
        """Also after an error the terminal is put back."""
        self._keyboard.close()
        super().destroy_node()
