"""DROID out of LeRobot datasets of the published layouts, which the tests write themselves."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wvl_ros.errors import EpisodeError
from wvl_ros.sans.lerobot import is_lerobot, read_lerobot
from wvl_ros.worlds import droid
from wvl_ros.worlds.kinematics import JOINT_LOWER, JOINT_UPPER

LENGTHS = (7, 10)
HEIGHT, WIDTH = 48, 64
RNG = np.random.default_rng(0)
JOINTS = [droid.RESET_JOINTS + RNG.uniform(-0.1, 0.1, (n, 7)).astype(np.float32) for n in LENGTHS]
POSES = [np.stack([droid.forward_kinematics(q) for q in rows]).astype(np.float32) for rows in JOINTS]
GRIPPERS = [np.linspace(0, 1, n, dtype=np.float32) for n in LENGTHS]
VELOCITIES = [RNG.uniform(-0.5, 0.5, (n, 7)).astype(np.float32) for n in LENGTHS]


def frames(episode: int, camera: int) -> list[np.ndarray]:
    """Flat pictures that say which episode, camera and row they are: codecs keep a flat grey to a level or two."""
    return [
        np.full((HEIGHT, WIDTH, 3), 10 + 100 * episode + 25 * camera + 2 * i, np.uint8) for i in range(LENGTHS[episode])
    ]


def video(path: Path, pictures: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(15), options={"crf": "10", "g": "4"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def columns(episode: int) -> dict[str, Any]:
    """The columns that droid_1.0.1 has, as its port to LeRobot writes them."""
    n = LENGTHS[episode]
    joints, gripper = JOINTS[episode], GRIPPERS[episode]
    return {
        "language_instruction": ["put the pen in the cup" if episode == 0 else ""] * n,
        "language_instruction_2": ["pen to cup" if episode == 0 else ""] * n,
        "observation.state.joint_position": joints.tolist(),
        "observation.state.cartesian_position": POSES[episode].tolist(),
        "observation.state.gripper_position": gripper.tolist(),
        "observation.state": np.column_stack([joints, gripper]).tolist(),
        "action.cartesian_position": (POSES[episode] + 0.001).tolist(),
        "action.joint_velocity": VELOCITIES[episode].tolist(),
        "action.gripper_position": gripper[::-1].tolist(),
        "action": np.column_stack([joints, gripper]).tolist(),
        "building": ["lab"] * n,
        "is_episode_successful": [episode == 0] * n,
        "timestamp": (np.arange(n) / 15).tolist(),
        "frame_index": list(range(n)),
        "episode_index": [episode] * n,
        "task_index": [episode] * n,
    }


WIDTHS = {"joint": 7, "cartesian": 6, "gripper": 1}


def features(names: list[str], cameras: list[str], dtype: str = "video") -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {"dtype": dtype, "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
        for name in cameras
    }
    for name in names:
        last = name.rpartition(".")[2].partition("_")[0]
        width = 8 if last in ("state", "action", "actions") else WIDTHS.get(last, 1)
        found[name] = {"dtype": "float32", "shape": [width], "names": None}
    return found


def info(root: Path, version: str, feature: dict[str, Any], fps: int = 15) -> None:
    packed = version == "v3.0"
    (root / "meta").mkdir(parents=True, exist_ok=True)
    data = "chunk-{chunk_index:03d}/file-{file_index:03d}" if packed else "chunk-{episode_chunk:03d}/"
    paths = {
        "data_path": f"data/{data}.parquet" if packed else f"data/{data}episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{data}.mp4"
        if packed
        else f"videos/{data}{{video_key}}/episode_{{episode_index:06d}}.mp4",
    }
    facts = {"codebase_version": version, "robot_type": "Franka", "fps": fps, "chunks_size": 1000, "features": feature}
    (root / "meta" / "info.json").write_text(json.dumps(facts | paths))


def packed(root: Path, fps: int = 15, cameras: tuple[str, ...] = ("exterior_1", "exterior_2", "wrist")) -> Path:
    """Version 3.0, the names of lerobot/droid_1.0.1: both episodes in each file."""
    keys = [f"observation.images.{camera}_left" for camera in cameras]
    tables = [columns(0), columns(1)]
    info(root, "v3.0", features(list(tables[0]), keys), fps)
    path = root / "data" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({name: tables[0][name] + tables[1][name] for name in tables[0]}), path)
    for number, key in enumerate(keys):
        video(root / "videos" / key / "chunk-000" / "file-000.mp4", frames(0, number) + frames(1, number))
    rows = []
    for episode, start in ((0, 0), (1, LENGTHS[0])):
        row = {"episode_index": episode, "tasks": ["the task"], "length": LENGTHS[episode]}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        for key in keys:
            row |= {f"videos/{key}/{name}_index": 0 for name in ("chunk", "file")}
            row |= {f"videos/{key}/from_timestamp": start / 15, f"videos/{key}/to_timestamp": (start + 9) / 15}
        rows.append(row)
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return root


def single(root: Path) -> Path:
    """Version 2.1, droid_1.0.1 before it was packed: a file an episode."""
    keys = [f"observation.images.{camera}_left" for camera in ("exterior_1", "exterior_2", "wrist")]
    info(root, "v2.1", features(list(columns(0)), keys))
    for episode in (0, 1):
        path = root / "data" / "chunk-000" / f"episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns(episode)), path)
        for number, key in enumerate(keys):
            video(root / "videos" / "chunk-000" / key / f"episode_{episode:06d}.mp4", frames(episode, number))
    lines = [json.dumps({"episode_index": i, "tasks": ["the task"], "length": n}) for i, n in enumerate(LENGTHS)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root


def openpi(root: Path) -> Path:
    """Version 2.1 as openpi's DROID conversion writes it: PNGs in the table, no poses, velocities and no success."""
    names = ["joint_position", "gripper_position", "actions"]
    info(root, "v2.1", features(names, list(droid.CAMERAS), "image"))
    for episode, length in enumerate(LENGTHS):
        gripper = GRIPPERS[episode]
        table: dict[str, Any] = {
            "joint_position": JOINTS[episode].tolist(),
            "gripper_position": gripper[:, None].tolist(),
            "actions": np.column_stack([VELOCITIES[episode], gripper]).tolist(),
            "episode_index": [episode] * length,
        }
        for number, camera in enumerate(droid.CAMERAS):
            cells = []
            for picture in frames(episode, number):
                Image.fromarray(picture).save(buffer := io.BytesIO(), format="PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
            table[camera] = cells
        path = root / "data" / "chunk-000" / f"episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
    lines = [json.dumps({"episode_index": i, "tasks": ["the task"], "length": n}) for i, n in enumerate(LENGTHS)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("write", [packed, single])
def test_droid_comes_with_images_states_actions_language_and_success(write: Any, tmp_path: Path) -> None:
    root = write(tmp_path / "droid")
    assert is_lerobot(root)
    assert not is_lerobot(tmp_path)
    for number, (name, read) in enumerate(read_lerobot(root)):
        assert name == f"droid#{number}"
        episode = read()
        np.testing.assert_array_equal(episode.joint_position, JOINTS[number])
        np.testing.assert_array_equal(episode.cartesian_position, POSES[number])
        np.testing.assert_array_equal(episode.gripper_position[:, 0], GRIPPERS[number])
        np.testing.assert_allclose(episode.action[:, :6], POSES[number][:-1] + 0.001, atol=1e-6)
        np.testing.assert_array_equal(episode.action[:, 6], GRIPPERS[number][::-1][:-1])
        assert (episode.action_space, episode.fps, episode.image_stride) == ("cartesian_position", 15.0, 1)
        assert episode.instruction == ("put the pen in the cup", "the task")[number]
        assert (episode.outcome, episode.outcome_source) == (("success", "failure")[number], "dataset")
        assert episode.reward.tolist() == [0.0] * (LENGTHS[number] - 2) + [float(number == 0)]
        for camera, key in enumerate(droid.CAMERAS):
            mean = episode.images[key].mean((1, 2, 3))
            np.testing.assert_allclose(mean, [p.mean() for p in frames(number, camera)], atol=1.0)
    assert number == 1


def test_openpi_s_velocities_are_read_as_the_joint_targets_they_meant_and_the_outcome_is_unknown(
    tmp_path: Path,
) -> None:
    episode = next(iter(read_lerobot(openpi(tmp_path))))[1]()
    assert (episode.action_space, episode.outcome, episode.outcome_source) == ("joint_position", "", "")
    velocities = VELOCITIES[0][:-1]
    limited = velocities / np.maximum(1, np.abs(velocities).max(1, keepdims=True))
    targets = np.clip(JOINTS[0][:-1] + 0.2 * limited, JOINT_LOWER, JOINT_UPPER)
    np.testing.assert_allclose(episode.action[:, :7], targets, atol=1e-7)
    np.testing.assert_allclose(episode.cartesian_position, POSES[0], atol=1e-5)  # computed from the joints
    for camera, name in enumerate(droid.CAMERAS):
        np.testing.assert_array_equal(episode.images[name], np.stack(frames(0, camera)))


def test_other_rates_and_cameras_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="runs at 30 Hz"):
        next(iter(read_lerobot(packed(tmp_path / "fast", fps=30))))
    with pytest.raises(EpisodeError, match=r"lacks DROID's camera 'wrist_image_left'; it has: .*exterior_1_left"):
        next(iter(read_lerobot(packed(tmp_path / "two", cameras=("exterior_1", "exterior_2")))))


def test_a_short_video_and_a_missing_file_are_named(tmp_path: Path) -> None:
    root = single(tmp_path)
    reads = [read for _, read in read_lerobot(root)]
    path = root / "videos" / "chunk-000" / "observation.images.wrist_left" / "episode_000001.mp4"
    video(path, frames(0, 2))
    with pytest.raises(EpisodeError, match=r"episode_000001.mp4' has 7 frames .* 10 are called for"):
        reads[1]()
    (root / "data" / "chunk-000" / "episode_000000.parquet").unlink()
    with pytest.raises(EpisodeError, match=r"episode_000000.parquet' cannot be read"):
        reads[0]()
