"""Reads a bag (ours, or one by `ros2 bag record`) as episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wvl_ros.errors import BagError
from wvl_ros.sans.bags.bag_episode import AlignmentOptions, BagEpisode, messages
from wvl_ros.sans.bags.foreign_bag import read_foreign
from wvl_ros.sans.bags.mapping import AUTO, OWN, choose
from wvl_ros.sans.bags.own_bag import read_own
from wvl_ros.sans.bags.streams import Bag
from wvl_ros.sans.episode import Episode

DEFAULT = AlignmentOptions()
_REWARD = "wvl_ros/msg/Reward"


def read_bag(path: Path | str, *, namespace: str = "", episode_id: str = "") -> Episode:
    """The episode in a bag, with its images in memory; where an image is missing, the one before stands in.

    Args:
        path: a rosbag2 folder, or a bare .mcap or .db3 file.
        namespace: which world's topics; '' takes the only one, or the one the recorder names in the bag.
        episode_id: which episode; '' takes the only one.

    Raises:
        BagError: no bag, a damaged one, a topic is missing, or the choice is not clear.
    """
    with Bag(path) as bag:
        episodes = dict(bag_episodes(bag, namespace=namespace, options=AlignmentOptions(allow_holes=True)))
        if not episode_id and len(episodes) > 1 and bag.custom_data.get("episode_id") in episodes:
            episode_id = bag.custom_data["episode_id"]
        if not episode_id and len(episodes) == 1:
            episode_id = next(iter(episodes))
        if episode_id not in episodes:
            wrong = f"no episode '{episode_id}', but" if episode_id else "more than one episode, name one:"
            raise BagError(f"The bag '{path}' holds {wrong} {', '.join(sorted(episodes))}.")
        return episodes[episode_id]().load()


def bag_episodes(
    bag: Bag, *, mapping: str = AUTO, namespace: str = "", options: AlignmentOptions = DEFAULT
) -> list[tuple[str, Callable[[], BagEpisode]]]:
    """The episodes of an open bag: a name that is its own within the bag, and a function that reads and aligns it.

    Args:
        bag: open as long as the episodes' images are read.
        mapping: name of a mapping, path of one, or 'auto'.
        namespace: which world's topics, see `read_bag`.
        options: how to align.

    Raises:
        BagError: no mapping fits, several do, or the streams make no sense. The functions: this episode is refused.
    """
    own = None
    if mapping in (AUTO, OWN):
        found = bag_namespaces(bag)
        wanted = namespace or bag.custom_data.get("namespace", "")
        if len(found) == 1 and not namespace:
            own = found[0]
        elif wanted in found:
            own = wanted
        elif found and mapping == AUTO and namespace:
            own = None  # a foreign mapping below that namespace
        elif found:
            raise BagError(f"The bag '{bag.path}' holds the worlds {', '.join(found)}: name one as the namespace.")
        if own is None and mapping == OWN:
            raise BagError(f"The bag '{bag.path}' holds no reward topic, so no episode of our own nodes.")
    topics = choose(bag.topics, mapping, namespace, bag=bag.path, own=own)
    return read_own(bag, topics, options) if topics.steps else read_foreign(bag, topics, options)


def bag_namespaces(bag: Bag) -> list[str]:
    """Namespaces in an open bag that hold an episode's reward topic."""
    return sorted(n[: -len("/reward")] for n, t in bag.topics.items() if n.endswith("/reward") and t.type == _REWARD)


def namespaces(path: Path | str) -> list[str]:
    """Namespaces in a bag that hold an episode's reward topic."""
    with Bag(path) as bag:
        return bag_namespaces(bag)


def last_episode(path: Path | str, namespace: str) -> str:
    """Name of the episode that began last in a namespace of a bag; '' when none has its beginning there."""
    topic = f"{namespace}/reward"
    with Bag(path) as bag:
        if topic not in bag.topics:
            return ""
        rewards = messages(bag, bag.scan({topic: True})[topic])
    return next((str(m.episode_id) for m in reversed(rewards) if m.step == 0), "")
