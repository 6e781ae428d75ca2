"""The world's own thread: makes the world, runs episodes in it and reports each observation.

MuJoCo's renderer and torch want to live in one thread, so everything that touches the world happens here. ROS stays
outside: the loop is given a `Stage` to report to and a `ChunkStore` to take actions from.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from wvl_ros.errors import WvlError
from wvl_ros.nodes.chunk_store import ChunkStore
from wvl_ros.nodes.messages import PlannedChunk
from wvl_ros.nodes.reports import EpisodeRequest, Stage, StepReport
from wvl_ros.sans.bags.topics import ABORTED, FINISHED, RUNNING
from wvl_ros.sans.sources import load_source, source_text
from wvl_ros.worlds import droid
from wvl_ros.worlds.interface import Observation, World

PERIOD = 1_000_000_000 // droid.CONTROL_HZ  # ns
PATIENCE = 5.0  # s without a chunk before a warning
FRESH_SHARE = 0.6  # of a control period that a real-time world waits for a chunk that answers its latest observation


class EpisodeLoop(threading.Thread):
    """Runs one episode after another as they are asked for.

    Args:
        make_world: called once, in this thread.
        realtime: 15 Hz by the wall clock instead of in lockstep with the chunks.
        defaults: task, instruction, source and start for requests that leave them empty.
    """

    def __init__(
        self,
        name: str,
        make_world: Callable[[], World],
        stage: Stage,
        chunks: ChunkStore,
        *,
        realtime: bool,
        defaults: EpisodeRequest,
    ) -> None:
        super().__init__(name="world", daemon=True)
        self.world_name = name
        self._make_world, self._stage, self._chunks = make_world, stage, chunks
        self._realtime, self._defaults = realtime, defaults
        self._requests: queue.SimpleQueue[EpisodeRequest | None] = queue.SimpleQueue()
        self._latest: EpisodeRequest | None = None
        self._closing = False
        self._republish = False
        self._stamp = 0
        self._clock: deque[float] = deque(maxlen=droid.CONTROL_HZ * 2)
        self._last_id = ""
        self._late, self._warned = 0, 0.0
        self._planned: PlannedChunk | None = None
        self.report: StepReport | None = None

    # -- called by the spinning thread ---------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether an episode is under way."""
        return self.report is not None and self.report.state == RUNNING

    def submit(self, request: EpisodeRequest) -> None:
        """Asks for an episode; one that is under way is aborted."""
        self.abort("a new episode was asked for")
        self._latest = request
        self._requests.put(request)

    def abort(self, reason: str) -> None:
        """Aborts the episode that is under way or about to start, if any."""
        if self._latest is not None and not self._latest.finished.done():
            self._latest.interrupt = self._latest.interrupt or reason
            self._chunks.wake()

    def republish(self) -> None:
        """Has the latest observation published again, for a policy that came after it."""
        self._republish = True
        self._chunks.wake()

    def close(self, timeout: float) -> None:
        """Aborts what is under way and ends the thread; waits up to `timeout` s for it."""
        self._closing = True
        self.abort("the world node was stopped")
        self._requests.put(None)
        self._chunks.wake()
        if self.is_alive():
            self.join(timeout)

    # -- this thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Makes the world and serves requests until `close`."""
        try:
            world = self._make_world()
            while not self._closing and (request := self._requests.get()) is not None:
                self._serve(world, request)
            world.close()
        except Exception as error:  # nobody else sees what breaks in this thread
            self._stage.failed(error)

    def _serve(self, world: World, request: EpisodeRequest) -> None:
        try:
            observation, report = self._reset(world, request)
        except WvlError as error:
            request.started.set_exception(error)
            request.finished.set_exception(error)
            return
        self._chunks.begin(report.episode_id)
        self.report = report
        request.started.set_result(report.episode_id)
        self._republish = False
        try:
            self._show(observation, report, request)
            report = self._episode(world, observation, report, request)
        except WvlError as error:
            report = self._aborted(str(error))
        except Exception:
            request.finished.set_result(self._aborted("the world broke"))
            raise
        self.report = report
        self._chunks.end()
        self._stage.changed(report)
        request.on_step(report)
        request.finished.set_result(report)

    def _reset(self, world: World, request: EpisodeRequest) -> tuple[Observation, StepReport]:
        default = self._defaults
        source = request.source or default.source
        start = request.start if request.source else request.start or default.start
        seed = request.seed if request.seed >= 0 else secrets.randbelow(2**31)
        options: dict[str, Any] = {
            "task": request.task or default.task,
            "instruction": request.instruction or default.instruction,
            "start": start,
        }
        episode = load_source(source)
        if episode is not None:
            options["source"] = episode
            options["task"] = ""  # a recorded episode has its own
        observation, info = world.reset(
            seed=seed, options={name: value for name, value in options.items() if value != ""}
        )
        self._clock.clear()
        self._late, self._planned = 0, None
        report = StepReport(
            episode_id=self._new_id(info["task"], seed),
            stamp=self._next_stamp(),
            step=0,
            max_steps=world.max_steps,
            task=info["task"],
            instruction=info["instruction"],
            source=source_text(source, start),
            seed=seed,
            commanded_pose=np.asarray(info["commanded_pose"], float),
            success_probability=float(info["success_probability"]),
        )
        return observation, report

    def _new_id(self, task: str, seed: int) -> str:
        name = "-".join([time.strftime("%Y%m%d-%H%M%S"), self.world_name, task or "free", str(seed)])
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        number = 2
        unique = name
        while unique == self._last_id:
            unique, number = f"{name}-{number}", number + 1
        self._last_id = unique
        return unique

    def _episode(
        self, world: World, observation: Observation, report: StepReport, request: EpisodeRequest
    ) -> StepReport:
        plan: deque[np.ndarray] = deque()
        deadline = time.monotonic()
        while not request.interrupt:
            if self._realtime:
                action = self._action_now(world, plan, observation, report, deadline)
            else:
                if not plan:
                    chunk = self._await_chunk(observation, report, request)
                    if chunk is None:
                        break
                    plan.extend(self._converted(world, chunk, 0, observation, report)[: chunk.execute_steps])
                action = plan.popleft()
            observation, reward, terminated, truncated, info = world.step(action)
            if self._realtime:
                deadline = self._sleep_until(deadline + PERIOD * 1e-9)
            over = terminated or truncated
            report = replace(
                report,
                stamp=self._next_stamp(),
                step=report.step + 1,
                commanded_pose=np.asarray(info["commanded_pose"], float),
                reward=float(reward),
                total_reward=report.total_reward + float(reward),
                success_probability=float(info["success_probability"]),
                outcome=info["outcome"] if over else "",
                frames_per_second=self._rate(),
                late_steps=self._late,
            )
            self.report = report
            self._show(observation, replace(report, outcome=""), request)
            if over:
                return replace(report, state=FINISHED)
        return self._aborted(request.interrupt)

    def _aborted(self, reason: str) -> StepReport:
        assert self.report is not None
        return replace(self.report, state=ABORTED, outcome="aborted", message=reason)

    def _show(self, observation: Observation, report: StepReport, request: EpisodeRequest) -> None:
        self._stage.observed(observation, report)
        request.on_step(report)

    # -- actions -------------------------------------------------------------------------------------------------------

    def _await_chunk(
        self, observation: Observation, report: StepReport, request: EpisodeRequest
    ) -> PlannedChunk | None:
        """Lockstep: the chunk that answers this observation, however long it takes; None on an interrupt."""
        began = warned = time.monotonic()
        while not request.interrupt:
            chunk = self._chunks.wait(report.step, 0.0 if self._republish else PATIENCE)
            if chunk is not None:
                return chunk
            if self._republish:
                self._republish = False
                self._stage.observed(observation, report)
            now = time.monotonic()
            if now - warned >= PATIENCE:
                warned = now
                self._stage.missing_chunk(report.step, now - began)
                self._republish = True  # in case the observation was what got lost
        return None

    def _action_now(
        self, world: World, plan: deque[np.ndarray], observation: Observation, report: StepReport, deadline: float
    ) -> np.ndarray:
        """Real time: the action of this step from the newest chunk, else the rest of the last one, else the last
        command.

        A chunk answers an observation that is a few steps old by the time it comes: the actions whose time has passed
        are skipped, and the others start from the last commanded pose.
        """
        chunk = self._chunks.latest(report.step)
        due = self._planned is None or report.step >= self._planned.step + self._planned.execute_steps
        limit = deadline + FRESH_SHARE * PERIOD * 1e-9
        while due and chunk is self._planned and not self._closing and (left := limit - time.monotonic()) > 0:
            self._chunks.wait(report.step, left)
            chunk = self._chunks.latest(report.step)
        if chunk is not None and chunk is not self._planned:
            self._planned = chunk
            plan.clear()
            plan.extend(self._converted(world, chunk, report.step - chunk.step, observation, report))
        if plan:
            return plan.popleft()
        self._late += 1
        if time.monotonic() - self._warned >= 1.0:
            self._warned = time.monotonic()
            self._stage.missing_chunk(report.step, 0.0)
        return report.commanded_pose

    @staticmethod
    def _converted(
        world: World, chunk: PlannedChunk, skip: int, observation: Observation, report: StepReport
    ) -> np.ndarray:
        """The chunk's actions from `skip` on, in the world's action space, from the last commanded pose."""
        pose, joints = report.commanded_pose[:6], observation["joint_position"]
        if "joint" in chunk.space + world.action_space_name:
            joints = droid.inverse_kinematics(pose, joints)
        return droid.convert_chunk(chunk.actions[skip:], chunk.space, world.action_space_name, joints, pose)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _next_stamp(self) -> int:
        """Lockstep: one control period after the last, beginning at the wall clock's time, and never back."""
        now = time.time_ns()
        if self._realtime:
            self._stamp = max(now, self._stamp + 1)
        else:
            self._stamp = self._stamp + PERIOD if self._stamp else now
        return self._stamp

    def _sleep_until(self, deadline: float) -> float:
        """Waits for a deadline; when it passed more than a period ago, the missed periods are given up."""
        now = time.monotonic()
        if now < deadline:
            time.sleep(deadline - now)
            return deadline
        if now - deadline > PERIOD * 1e-9:
            self._late += int((now - deadline) / (PERIOD * 1e-9))
            return now
        return deadline

    def _rate(self) -> float:
        """Steps a second over the last two seconds' worth of steps."""
        self._clock.append(time.monotonic())
        elapsed = self._clock[-1] - self._clock[0]
        return (len(self._clock) - 1) / elapsed if elapsed > 0 else 0.0
