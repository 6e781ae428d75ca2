"""Conversion of many sources at once."""

from __future__ import annotations

import json

from wvl_ros.cli import main
from wvl_ros.sans.dataset import Dataset
from wvl_ros.sans.export import export_bag


def convert(capsys, *arguments, workers: int = 1) -> tuple[int, dict, str]:
    """Exit code, the JSON result and what stands on stderr."""
    code = main(["convert", *map(str, arguments), "--workers", str(workers), "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out), out.err


def test_one_bad_source_stops_nothing(tmp_path, capsys, robot_bag, make_episode):
    recordings = tmp_path / "recordings"
    for seed in (1, 2):
        export_bag(make_episode(steps=9, seed=seed), recordings)
    cut = export_bag(make_episode(steps=9, seed=3), recordings).bag
    data = next(cut.glob("*.mcap"))
    data.write_bytes(data.read_bytes()[:-100])
    (tmp_path / "notes.txt").write_text("no bag")
    lab = robot_bag.usual(0.5).write(tmp_path / "lab")
    make_episode(seed=5).save(tmp_path / "file.safetensors")
    arguments = [recordings, tmp_path / "notes.txt", tmp_path / "gone", lab, tmp_path / "file.safetensors"]
    code, result, err = convert(capsys, *arguments, "--out", tmp_path / "sans", "--instruction", "lift it")
    assert (code, result["added"]) == (1, 3)
    said = {row["source"].rsplit("/", 1)[-1]: row["error"] for row in result["refused"]}
    assert set(said) == {"bag", "notes.txt", "gone", "lab"}
    assert "stops in the middle" in said["bag"]
    assert "choose another folder" in said["lab"]  # its images have another size
    assert all(sentence in err for sentence in said.values())
    assert convert(capsys, lab, "--out", tmp_path / "lab_sans", "--instruction", "lift it")[1]["outcomes"] == {
        "unlabelled": 1
    }
    assert Dataset.open(tmp_path / "lab_sans").records[0].instruction == "lift it"


def test_workers_side_by_side_keep_the_order_of_the_sources(tmp_path, capsys, make_episode):
    lengths = (9, 400, 9, 200, 9)  # the long ones are done after those behind them
    files = [tmp_path / f"{seed}.safetensors" for seed in range(len(lengths))]
    for seed, steps in enumerate(lengths):
        make_episode(steps=steps, seed=seed).save(files[seed])
    code, result, _ = convert(capsys, *files, "--out", tmp_path / "sans", workers=2)
    assert (code, result["added"]) == (0, 5)
    records = Dataset.open(tmp_path / "sans").records
    assert [record.episode_id for record in records] == [f"synthetic_{seed}" for seed in range(5)]
