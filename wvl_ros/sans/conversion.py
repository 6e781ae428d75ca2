"""Conversion of any source of episodes into a SANS dataset: resumable, idempotent, and one bad source stops nothing."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wvl_ros.errors import ConfigError, UnknownNameError, WvlError
from wvl_ros.sans.bags.bag_episode import AlignmentOptions
from wvl_ros.sans.conversion_items import Item, items
from wvl_ros.sans.conversion_sources import Source
from wvl_ros.sans.dataset import Dataset, DatasetFormat, is_dataset
from wvl_ros.sans.episode import OUTCOMES, Episode
from wvl_ros.sans.store.format import CODECS

Progress = Callable[[float], None]


class _Event(Protocol):
    def is_set(self) -> bool: ...
    def set(self) -> None: ...


@dataclass(frozen=True)
class ConversionOptions:
    """How sources become episodes of a dataset.

    Attributes:
        mapping, namespace: see `bag.bag_episodes`.
        codec: 'h264', 'lossless', or '' for the dataset's own ('h264' for a new one).
        alignment: for bags.
        outcome: said of all episodes by the operator; '' leaves what each says.
        iteration, source, policy, world_model: override what each episode says; None and '' leave it.
    """

    mapping: str = "auto"
    namespace: str = ""
    codec: str = ""
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    outcome: str = ""
    iteration: int | None = None
    source: str = ""
    policy: str = ""
    world_model: str = ""

    def __post_init__(self) -> None:
        if self.codec not in ("", *CODECS):
            raise UnknownNameError("codec", self.codec, CODECS)
        if self.outcome not in OUTCOMES:
            raise UnknownNameError("outcome", self.outcome, OUTCOMES[1:])
        if self.iteration is not None and self.iteration < 0:
            raise ConfigError(f"An iteration counts from 0, so {self.iteration} is none.")


@dataclass
class Conversion:
    """What became of sources.

    Attributes:
        added: facts of each new episode: index, episode, source, outcome, outcome_source, length, report.
        kept: how many were in the dataset already.
        refused: source (and episode) -> why.
    """

    added: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)

    def __iadd__(self, other: Conversion) -> Conversion:
        self.added += other.added
        self.kept += other.kept
        self.refused += other.refused
        return self


def convert(
    sources: list[Source],
    out: Path,
    options: ConversionOptions,
    *,
    workers: int = 1,
    progress: Progress = lambda share: None,
) -> Conversion:
    """Adds the episodes of sources to the dataset at `out`, which is made when it is not there.

    Args:
        sources: see `conversion_sources.find_sources`.
        out: the dataset's folder.
        workers: processes, each with a source of its own; within one, each camera has a thread.
        progress: is told of each share of a source that is done; the shares of a source add up to 1.

    Raises:
        KeyboardInterrupt: after Ctrl-C; whole episodes stay, and converting again goes on from there.
    """
    result = Conversion()
    queue = list(sources)
    stop = threading.Event()
    # Until there is a dataset, one after the other: the first episode settles its cameras and sizes.
    while queue and (workers == 1 or len(queue) == 1 or not is_dataset(out)):
        result += convert_source(queue.pop(0), out, options, stop, progress)
    if not queue:
        return result
    context = multiprocessing.get_context("spawn")
    halt, turns = context.Event(), Turns(context)
    pool = ProcessPoolExecutor(min(workers, len(queue)), context, initializer=_begin, initargs=(halt, turns))
    try:
        futures: dict[Future[Conversion], Source] = {
            pool.submit(_work, number, s, out, options): s for number, s in enumerate(queue)
        }
        for future in as_completed(futures):
            try:
                result += future.result()
            except BrokenProcessPool:
                name = str(futures[future].path)
                result.refused.append(
                    {"source": name, "error": f"The process that converted '{name}' was killed (is memory short?)."}
                )
            progress(1.0)
    except BaseException:
        halt.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return result


class Turns:
    """Sources that are converted side by side commit their episodes in their order, so a dataset is the same each time.

    The first of those under way never waits, so all end.
    """

    def __init__(self, context: SpawnContext) -> None:
        self._next = context.Value("q", 0)
        self._changed = context.Condition()

    def wait(self, number: int, stop: _Event) -> None:
        """Until all sources before `number` are done, or `stop` is set."""
        with self._changed:
            while self._next.value < number and not stop.is_set():
                self._changed.wait(0.5)

    def done(self, number: int, stop: _Event) -> None:
        """Says that a source is done, once those before it are."""
        self.wait(number, stop)
        with self._changed:
            self._next.value = number + 1
            self._changed.notify_all()


def convert_source(
    source: Source,
    out: Path,
    options: ConversionOptions,
    stop: _Event,
    progress: Progress = lambda share: None,
    await_turn: Callable[[], None] = lambda: None,
) -> Conversion:
    """Adds the episodes of one source; see `convert`. `await_turn` is called before each commit."""
    result = Conversion()
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done += share
        progress(share)

    try:
        known = _known(out)
        for count, item in items(source, options, known):
            if item.fingerprint in known:
                result.kept += 1
            else:
                share = functools.partial(_share, advance, count)
                _add(item, source, out, options, result, stop, share, await_turn)
    except WvlError as error:
        result.refused.append({"source": str(source.path), "error": str(error)})
    progress(max(0.0, 1.0 - done))
    return result


def _add(
    item: Item,
    source: Source,
    out: Path,
    options: ConversionOptions,
    result: Conversion,
    stop: _Event,
    progress: Progress,
    await_turn: Callable[[], None],
) -> None:
    try:
        episode, cameras, report = item.load()
        episode = _override(episode, options)
        sizes = {name: (options.alignment.size or images.size()) for name, images in cameras.items()}
        dataset = _dataset(out, sizes, episode.fps, options.codec)
        total = sum(len(images) for images in cameras.values())
        with dataset.draft(episode.image_stride) as draft:

            def encode(name: str) -> None:
                for image in cameras[name]:
                    if halt.is_set() or stop.is_set():
                        return
                    draft.add_image(name, image)
                    with lock:
                        progress(1.0 / total)

            halt, lock = threading.Event(), threading.Lock()
            with ThreadPoolExecutor(max(1, len(cameras))) as pool:
                try:
                    for future in as_completed([pool.submit(encode, name) for name in cameras]):
                        future.result()
                except BaseException:
                    halt.set()  # one camera failed, or Ctrl-C: the others need not go on
                    raise
            await_turn()
            if stop.is_set():
                raise KeyboardInterrupt
            index = draft.commit(episode, origin=item.origin, fingerprint=item.fingerprint, report=report)
    except WvlError as error:
        result.refused.append({"source": str(source.path), "episode": item.name, "error": str(error)})
        return
    result.added.append(
        {
            "index": index,
            "episode": episode.episode_id or item.name,
            "source": str(source.path),
            "outcome": episode.outcome,
            "outcome_source": episode.outcome_source,
            "length": len(episode),
            "report": report,
        }
    )


def _share(advance: Progress, count: int, share: float) -> None:
    advance(share / count)


def _override(episode: Episode, options: ConversionOptions) -> Episode:
    """The episode with what the operator says of it; rewards follow the outcome."""
    changes: dict[str, Any] = {
        name: value for name in ("source", "policy", "world_model") if (value := getattr(options, name))
    }
    if options.iteration is not None:
        changes["iteration"] = options.iteration
    if options.outcome:
        changes |= {"outcome": options.outcome, "outcome_source": "operator"}
        reward = episode.reward.copy()
        if options.outcome != "success":
            reward[:] = 0
        elif not (reward > 0.5).any():
            reward[-1:] = 1
        changes["reward"] = reward.astype(np.float32)
    return replace(episode, **changes) if changes else episode


def _known(out: Path) -> dict[str, int]:
    """Fingerprints in the dataset, and how many episodes the bag of each has."""
    if not is_dataset(out):
        return {}
    return {r.fingerprint: int(str(r.report.get("episodes_in_source", 0))) for r in Dataset.open(out).records}


_datasets: dict[Path, Dataset] = {}


def _dataset(out: Path, sizes: Mapping[str, tuple[int, int]], fps: float, codec: str) -> Dataset:
    if not codec:
        codec = Dataset.open(out).format.codec if is_dataset(out) and out not in _datasets else "h264"
        codec = _datasets[out].format.codec if out in _datasets else codec
    format = DatasetFormat(dict(sizes), fps, codec)
    if out not in _datasets or _datasets[out].format != format or not is_dataset(out):
        _datasets[out] = Dataset.open_or_create(out, format)
    return _datasets[out]


_worker: list[tuple[_Event, Turns]] = []


def _begin(halt: _Event, turns: Turns) -> None:
    """In a worker process: Ctrl-C is the parent's, which then sets `halt`."""
    _worker[:] = [(halt, turns)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(number: int, source: Source, out: Path, options: ConversionOptions) -> Conversion:
    halt, turns = _worker[0]
    try:
        return convert_source(source, out, options, halt, await_turn=lambda: turns.wait(number, halt))
    except KeyboardInterrupt:  # raised by ourselves when the parent says halt
        return Conversion()
    finally:
        turns.done(number, halt)
