"""`wvl convert` as its user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from wvl_ros.cli import main
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.export import export_bag
from wvl_ros.worlds.droid import CAMERAS


def convert(capsys, *arguments) -> tuple[int, dict, str]:
    """Exit code, the JSON result and what stands on stderr."""
    code = main(["convert", *map(str, arguments), "--workers", "1", "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out), out.err


@pytest.fixture
def recordings(tmp_path, make_episode):
    """A folder of two recordings, one of them labelled a failure, and one that is not finished."""
    folder = tmp_path / "recordings"
    for seed, outcome in ((1, "success"), (2, "failure")):
        export_bag(make_episode(steps=9, seed=seed, outcome=outcome), folder)
    (folder / ".third.77.part" / "bag").mkdir(parents=True)
    return folder


def test_recordings_become_a_dataset_and_a_second_run_adds_nothing(tmp_path, capsys, recordings, make_episode):
    out = tmp_path / "sans"
    code, result, _ = convert(capsys, recordings, "--out", out, "--codec", "lossless", "--iteration", "2")
    assert (code, result["added"], result["kept"], result["outcomes"]) == (0, 2, 0, {"failure": 1, "success": 1})
    assert len(result["unfinished"]) == 1
    dataset = Dataset.open(out)
    assert [r.iteration for r in dataset.records] == [2, 2]
    assert {r.origin for r in dataset.records} == {"synthetic_1", "synthetic_2"}
    episode, found = make_episode(steps=9, seed=1), dataset.read(0)
    np.testing.assert_array_equal(found.joint_position, episode.joint_position)
    np.testing.assert_array_equal(found.action, episode.action)
    for camera in CAMERAS:
        np.testing.assert_array_equal(found.images[camera], episode.images[camera])
    assert dataset.records[0].report["streams"]["joint_states"]["drops"] == 0
    moved = recordings.rename(tmp_path / "moved")
    assert convert(capsys, moved, "--out", out)[1]["kept"] == 2
    code, result, _ = convert(capsys, out, "--out", tmp_path / "copy", "--size", "32x48", "--outcome", "near_success")
    assert (result["added"], result["outcomes"]) == (2, {"near_success": 2})
    copy = Dataset.open(tmp_path / "copy")
    assert copy.format.cameras[CAMERAS[0]] == (32, 48)
    assert copy.read(0, images=False).reward.max() == 0
    assert convert(capsys, out, "--out", tmp_path / "copy", "--size", "32x48")[1]["kept"] == 2


def test_several_processes_and_ctrl_c_leave_a_sound_dataset(tmp_path, make_episode):
    for seed in range(24):
        make_episode(steps=60, seed=seed).save(tmp_path / "files" / f"{seed:03d}.safetensors")
    out = tmp_path / "sans"
    command = [sys.executable, "-m", "wvl_ros.cli", "convert", str(tmp_path / "files"), "--out", str(out), "--json"]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(out.glob("data/*/*.parquet"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 0 when it was faster
    assert b"Traceback" not in err
    before = Dataset.open(out)
    assert 3 <= len(before) <= 24
    assert before.verify() == []
    done = subprocess.run([*command, "--workers", "2"], check=True, capture_output=True, env=os.environ)
    result = json.loads(done.stdout)
    assert (result["added"], result["kept"]) == (24 - len(before), len(before))
    assert sorted(r.episode_id for r in Dataset.open(out).records) == sorted(f"synthetic_{s}" for s in range(24))
    assert Dataset.open(out).verify() == []


def test_wrong_arguments_are_one_sentence(tmp_path, capsys, recordings):
    for arguments, sentence in {
        ("--mapping", "zedd"): "There is no mapping",
        ("--outcome", "good"): "There is no outcome called 'good'",
        ("--split-gap", "-1"): "--split-gap positive",
    }.items():
        assert main(["convert", str(recordings), "--out", str(tmp_path / "sans"), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "sans").exists()
