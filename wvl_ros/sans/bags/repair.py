"""Makes bags readable whose recorder was killed: storage files get their end and index back, the bag its metadata.yaml.

Each damaged file is written anew beside the old one, which it then replaces by renaming; so a repair that is itself
killed can be repeated.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader, ReaderError
from zstandard import ZstdDecompressor, ZstdError

from wvl_ros.errors import BagError
from wvl_ros.sans.bags import mcap_salvage, sqlite_salvage
from wvl_ros.sans.bags.label import read_metadata, write_metadata
from wvl_ros.sans.bags.metadata import describe_files
from wvl_ros.sans.bags.part_folder import FACTS, PartFolder
from wvl_ros.sans.bags.topics import ABORTED, FINISHED, TOPICS, message_types

SUFFIXES = (".mcap", ".db3")
STATUS = TOPICS["episode_status"]


@dataclass(frozen=True)
class Repaired:
    """What became of one bag.

    Attributes:
        path: where it is now. state: 'whole' (nothing was to do), 'repaired' or 'empty' (no message; removed).
        messages, seconds: in the bag. outcome: of its episode, '' where it holds none.
    """

    path: Path
    state: str
    messages: int = 0
    seconds: float = 0.0
    outcome: str = ""


class Statuses:
    """The last word of each namespace's episode_status in a bag."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    def look(self, topic: str, kind: str, data: bytes) -> None:
        """Takes a message; others than statuses are passed over."""
        namespace, _, name = topic.rpartition("/")
        if name != "episode_status" or kind != STATUS:
            return
        try:
            status: Any = message_types().deserialize_cdr(data, STATUS)
        except Exception:  # cut off, compressed or of another version: rosbags raises whatever that leads to
            return
        if status.episode_id:
            self.last[namespace] = status

    def facts(self, noted: dict[str, str]) -> dict[str, str]:
        """The entries for custom_data of a bag of ours, as far as they can be known; empty for others."""
        namespace = noted.get("namespace", next(iter(self.last), ""))
        status = self.last.get(namespace)
        if status is None and not noted:
            return {}
        facts = dict.fromkeys(FACTS, "") | {"iteration": "0", "namespace": namespace}
        facts |= {"outcome": "aborted", "outcome_source": "", "reason": "its recorder was killed"}
        if status is not None:
            facts["episode_id"] = status.episode_id
            if status.state in (FINISHED, ABORTED):
                facts |= {"outcome": status.outcome, "reason": status.message}
                facts["outcome_source"] = "world" if status.state == FINISHED else ""
        return facts | noted


def find_bags(path: Path) -> list[Path]:
    """What `repair` takes, in and below a path: itself, or the recordings and bags of a folder.

    Raises:
        BagError: there is none.
    """
    if not path.exists():
        raise BagError(f"There is nothing at '{path}'.")
    if path.is_file() or _is_recording(path) or _files(path):
        return [path]
    found = [child for child in sorted(path.iterdir()) if child.is_dir() and (_is_recording(child) or _files(child))]
    if not found:
        raise BagError(f"'{path}' holds neither a bag nor recordings.")
    return found


def repair(path: Path) -> Repaired:
    """Repairs one bag: a rosbag2 folder, a recording's folder (also a hidden `.part` one), or a bare storage file.

    Raises:
        BagError: nothing in it can be read, its recorder still writes, or there is no room for the new files.
    """
    try:
        if path.is_file():
            return _repair_file(path)
        if path.name.endswith(".part"):
            return _repair_part(path)
        if _is_recording(path):
            return _repair_bag(path / "bag", {})
        return _repair_bag(path, {})
    except OSError as error:
        raise BagError(f"'{path}' cannot be repaired: {error.strerror or error}.") from error


def _is_recording(path: Path) -> bool:
    return (path / "bag").is_dir() or path.name.endswith(".part")


def _files(bag: Path) -> list[Path]:
    """The storage files of a bag in the order in which they were recorded."""
    packed = tuple(f"{suffix}.zstd" for suffix in SUFFIXES)
    files = {file for file in bag.iterdir() if file.name.endswith(SUFFIXES + packed) and not file.name.startswith(".")}
    # rosbag2 removes what it has packed, so a packed file beside the plain one is not whole.
    return sorted((file for file in files if file.suffix != ".zstd" or file.with_suffix("") not in files), key=_numbers)


def _numbers(file: Path) -> list[tuple[int, str]]:
    """Sorts bag_2 before bag_10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", file.name)]


def _repair_part(path: Path) -> Repaired:
    part = PartFolder.take(path)
    if part is None:
        raise BagError(f"'{path}' is being recorded; stop its recorder first.")
    try:
        noted = part.facts()
        result = _repair_bag(part.bag, noted) if part.bag.is_dir() and _files(part.bag) else None
        if result is None or not result.messages:
            shutil.rmtree(path)
            return Repaired(path, "empty")
        episode_id = noted.get("episode_id") or path.name.removeprefix(".").split(".")[0]
        folder = part.finish(path.parent, episode_id)
        return Repaired(folder / "bag", "repaired", result.messages, result.seconds, result.outcome)
    finally:
        part.release()


def _repair_file(path: Path) -> Repaired:
    """A bag's file stands for its bag. One that lies among others gets a bag of its own, and stays."""
    if (path.parent / "metadata.yaml").exists() or _files(path.parent) == [path]:
        return _repair_bag(path.parent, {})
    name = path.name.removesuffix(".zstd").removesuffix(path.suffix)
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    bag = path.with_name(name)
    if bag.exists():
        raise BagError(f"The bag of '{path.name}' would be '{bag}', which is there already; move one of them away.")
    part = path.with_name(f".{name}.{os.getpid()}.part")
    part.mkdir()
    try:
        for file in (path, *(path.with_name(path.name + end) for end in sqlite_salvage.JOURNALS)):
            if file.exists():
                shutil.copy2(file, part / file.name)
        result = _repair_bag(part, {})
        part.rename(bag)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Repaired(bag, "repaired", result.messages, result.seconds, result.outcome)


def _repair_bag(bag: Path, noted: dict[str, str]) -> Repaired:
    if _is_readable(bag):
        return _summary(bag, "whole")
    files = _files(bag)
    if not files:
        raise BagError(f"'{bag}' holds no .mcap or .db3 file.")
    statuses = Statuses()
    mended = [_mend(file, statuses) for file in files]
    try:
        custom = read_metadata(bag)["rosbag2_bagfile_information"].get("custom_data") or {}
    except BagError:  # that is what there is to repair
        custom = {}
    if not custom:
        for file in mended:
            _look_at(file, statuses)
        custom = statuses.facts(noted)
    write_metadata(bag / "metadata.yaml", describe_files(mended, custom))
    for file in set(files) - set(mended):  # unpacked
        file.unlink()
    if not _is_readable(bag):
        raise BagError(f"'{bag}' cannot be read even now; please report this.")
    return _summary(bag, "repaired")


def _is_readable(bag: Path) -> bool:
    """Whether rosbag2 finds all it needs: metadata.yaml that fits the files, and an index in each of them."""
    try:
        information = read_metadata(bag)["rosbag2_bagfile_information"]
        files = [bag / Path(name).name for name in information["relative_file_paths"]]
        if not files or information["compression_mode"].lower() == "file":
            return bool(files) and all(file.is_file() for file in files) and _opens(bag)
        whole = all(_is_whole(file) for file in files) and set(files) == set(_files(bag))
        return whole and _opens(bag) and information["message_count"] == sum(_count(file) for file in files)
    except (BagError, KeyError, TypeError, AttributeError, OSError):
        return False


def _opens(bag: Path) -> bool:
    try:
        with Reader(bag):
            return True
    except Exception:  # rosbags raises whatever damaged bytes lead to
        return False


def _count(file: Path) -> int:
    try:
        with Reader(file) as reader:
            return reader.message_count
    except ReaderError as error:
        raise BagError(str(error)) from error


def _is_whole(file: Path) -> bool:
    return mcap_salvage.is_whole(file) if file.suffix == ".mcap" else sqlite_salvage.is_whole(file)


def _mend(file: Path, statuses: Statuses) -> Path:
    """Makes a storage file whole, under its own name, or unpacked beside a packed one."""
    if file.suffix == ".zstd":
        file = _unpack(file)
    if file.suffix == ".db3" and sqlite_salvage.settle(file):
        return file
    if _is_whole(file):
        return file
    size, free = file.stat().st_size, shutil.disk_usage(file.parent).free
    if free < size:
        raise BagError(f"To repair '{file}', {size >> 20} MB must be free on its disk, but {free >> 20} MB are.")
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        if file.suffix == ".mcap":
            mcap_salvage.salvage(file, part, statuses.look)
        elif not sqlite_salvage.salvage(file, part):
            raise BagError(f"Nothing in '{file}' can be read.")
        with part.open("rb+") as whole:
            os.fsync(whole.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    for end in sqlite_salvage.JOURNALS:
        file.with_name(file.name + end).unlink(missing_ok=True)
    return file


def _unpack(file: Path) -> Path:
    """Unpacks a file that `ros2 bag record` compressed as a whole, as far as it goes."""
    target = file.with_suffix("")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with file.open("rb") as packed, part.open("wb") as out:
            decompressor = ZstdDecompressor().decompressobj()
            while (block := packed.read(1 << 20)) and not decompressor.eof:
                out.write(decompressor.decompress(block))
        part.replace(target)
    except ZstdError as error:
        raise BagError(f"'{file}' cannot be unpacked: {error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _look_at(file: Path, statuses: Statuses) -> None:
    try:
        with Reader(file) as reader:
            wanted = [c for c in reader.connections if c.topic.endswith("/episode_status")]
            for connection, _, data in reader.messages(wanted) if wanted else ():
                statuses.look(connection.topic, connection.msgtype, data)
    except ReaderError as error:
        raise BagError(f"'{file}' cannot be read: {str(error).rstrip('.')}.") from error


def _summary(bag: Path, state: str) -> Repaired:
    information = read_metadata(bag)["rosbag2_bagfile_information"]
    custom = information.get("custom_data") or {}
    seconds = information["duration"]["nanoseconds"] * 1e-9
    return Repaired(bag, state, information["message_count"], seconds, str(custom.get("outcome", "")))
