"""The policy node: any policy behind ROS topics."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image, JointState

from wvl_ros.errors import WvlError
from wvl_ros.msg import ActionChunk, EpisodeStatus, Reward
from wvl_ros.nodes import qos
from wvl_ros.nodes.messages import chunk_message, to_nanoseconds, to_time
from wvl_ros.nodes.node import Peer, WvlNode
from wvl_ros.nodes.observation_sets import ObservationSet, ObservationSets
from wvl_ros.nodes.parameters import declare
from wvl_ros.policies.interface import Policy
from wvl_ros.policies.registry import POLICIES, make_policy
from wvl_ros.sans.bags.topics import IMAGES, RUNNING

PATIENCE = 1.0  # s for the rest of an observation
TOPICS: dict[str, type] = {
    **dict.fromkeys(IMAGES, Image),
    "joint_states": JointState,
    "cartesian_position": PoseStamped,
    "reward": Reward,
}


@dataclass
class RunningEpisode:
    """The episode the policy acts in. `asked`: the step it was last asked about; `due`: the one that wants the next
    chunk; None before the first.
    """

    status: EpisodeStatus
    asked: int | None = None
    due: int | None = None
    chunks: int = 0


@dataclass(frozen=True)
class Question:
    """One observation that wants a chunk. `first`: the policy must forget the episode before."""

    observation: ObservationSet
    episode_id: str
    instruction: str
    seed: int
    step: int
    chunk_id: int
    first: bool


class PolicyNode(WvlNode):
    """Answers observations with action chunks on `action_chunk`.

    An observation is the set of messages with one stamp: three images, `joint_states`, `cartesian_position` and
    `reward`, which says the step. The policy is asked at an episode's first observation and whenever the last chunk's
    `execute_steps` have passed. Instruction and seed come from `episode_status`. The policy lives in a thread of its
    own; in real time it is always asked about the newest observation.
    """

    def __init__(self) -> None:
        super().__init__("policy")
        choice = {
            "name": declare(self, "policy", "small", f"Which policy: {', '.join(POLICIES)}."),
            "checkpoint": declare(self, "checkpoint", "", "Name or folder of its weights; '' takes those shipped."),
            "source": declare(self, "source", "", "Episode to replay, for policy 'replay'."),
            "start": declare(self, "start", 0, "Step to replay it from.", least=0),
        }
        self._seed = declare(self, "seed", -1, "Seed of the sampling; negative takes each episode's.", least=-1)
        self._sets = ObservationSets(tuple(TOPICS))
        self._statuses: dict[str, EpisodeStatus] = {}
        self._episode: RunningEpisode | None = None
        self._waiting: ObservationSet | None = None
        self._policy: Policy | None = None
        self._answered: ActionChunk | None = None
        self._publisher: Publisher | None = None
        self._warned: dict[str, float] = {}
        for topic, kind in TOPICS.items():
            self.create_subscription(kind, topic, lambda m, t=topic: self._on_message(t, m), qos.OBSERVATION)
        world = Peer(gone=self._world_gone)
        self.create_subscription(
            EpisodeStatus, "episode_status", self._on_status, qos.STATUS, event_callbacks=world.events()
        )
        self.create_timer(0.5, self._check_topics, clock=self.wall)
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._think, args=(choice,), name="policy", daemon=True)
        self._thread.start()

    # -- the spinning thread -------------------------------------------------------------------------------------------

    def _ready(self, policy: Policy) -> None:
        """The policy is loaded: only now the node shows up as a publisher, and worlds may start."""
        self._policy = policy
        self._publisher = self.create_publisher(ActionChunk, "action_chunk", qos.CHUNK)
        self.get_logger().info(f"The policy '{policy.name}' is ready.")
        self._ask()

    def _on_status(self, status: EpisodeStatus) -> None:
        if status.state == RUNNING:
            self._statuses[status.episode_id] = status
            self._ask()
            return
        self._statuses.pop(status.episode_id, None)
        if self._episode is not None and self._episode.status.episode_id == status.episode_id:
            self._episode = None
            self._sets.clear()

    def _on_message(self, topic: str, message: Any) -> None:
        complete = self._sets.add(topic, to_nanoseconds(message.header.stamp), message, time.monotonic())
        if complete is not None:
            self._waiting = complete
            self._ask()

    def _ask(self) -> None:
        """Asks the policy about the latest observation if it is due and its episode's instruction is known."""
        if self._waiting is None or self._policy is None:
            return
        reward: Reward = self._waiting.messages["reward"]
        status = self._statuses.get(reward.episode_id)
        if status is None:
            return
        observation, self._waiting = self._waiting, None
        first = self._episode is None or self._episode.status.episode_id != reward.episode_id
        if first:
            self._episode = RunningEpisode(status)
            for other in [name for name in self._statuses if name != reward.episode_id]:
                del self._statuses[other]
        episode = self._episode
        assert episode is not None
        if episode.due is not None and reward.step < episode.due:
            if reward.step == episode.asked:
                self._answer_again(reward.episode_id, int(reward.step))
            return
        episode.asked, episode.due = reward.step, reward.step + self._policy.execute_steps
        seed = self._seed if self._seed >= 0 else int(status.seed)
        names = (reward.episode_id, status.instruction, seed, int(reward.step), episode.chunks)
        self._questions.put(Question(observation, *names, first=first))
        episode.chunks += 1

    def _answer_again(self, name: str, step: int) -> None:
        """A world that shows an observation again has not got its chunk: it had not met this publisher yet, say."""
        answer = self._answered
        if answer is not None and self._publisher is not None and (answer.episode_id, answer.step) == (name, step):
            self._publisher.publish(answer)

    def _world_gone(self) -> None:
        if self._episode is not None:
            name = self._episode.status.episode_id
            self.get_logger().error(f"The world node is gone: episode {name} is forgotten.")
        self._episode, self._waiting = None, None
        self._statuses.clear()
        self._sets.clear()

    def _check_topics(self) -> None:
        if not self._statuses:  # no episode is running: what is left of the last one may stay incomplete
            self._sets.clear()
        now = time.monotonic()
        for topic in self._sets.overdue(now, PATIENCE):
            if now - self._warned.get(topic, 0.0) >= 5.0:
                self._warned[topic] = now
                name = self.resolve_topic_name(topic)
                self.get_logger().warning(f"'{name}' has stopped while other topics go on: no action without it.")

    # -- the policy's thread -------------------------------------------------------------------------------------------

    def _think(self, choice: dict[str, Any]) -> None:
        try:
            policy = make_policy(**choice)
            self.call(lambda: self._ready(policy))
            while (question := self._questions.get()) is not None:
                first = question.first
                while not self._questions.empty() and (newer := self._questions.get()) is not None:
                    question, first = newer, first or newer.first
                if first:
                    policy.reset(question.seed)
                self._answer(policy, question)
        except Exception as error:  # nobody else sees what breaks in this thread
            code = 2 if isinstance(error, WvlError) else 1
            sentence = str(error) if code == 2 else f"The policy broke: {error!r}"
            self.call(lambda: self.fail(sentence, code))

    def _answer(self, policy: Policy, question: Question) -> None:
        chunk = policy.act([question.observation.observation()], [question.instruction])
        header = {"episode_id": question.episode_id, "chunk_id": question.chunk_id, "step": question.step}
        stamp = to_time(question.observation.stamp)
        assert self._publisher is not None
        answer = chunk_message(chunk, policy.action_space, policy.execute_steps, header, stamp)
        self._publisher.publish(answer)
        self._answered = answer

    def close(self) -> None:
        """Ends the policy's thread."""
        self._questions.put(None)
        self._thread.join(1.0)
