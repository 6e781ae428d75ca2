"""Mappings: the shipped ones are sound, one's own are checked, and 'auto' names what it cannot tell."""

from __future__ import annotations

import pytest

from wvl_ros.errors import BagError, ConfigError, UnknownNameError
from wvl_ros.sans.bags import mapping
from wvl_ros.sans.bags.mcap_file import Topic
from wvl_ros.worlds.droid import CAMERAS


def topics(*names: str) -> dict[str, Topic]:
    return {n: Topic(n, "sensor_msgs/msg/" + ("JointState" if "joint" in n else "Image")) for n in names}


FRANKA = ("/franka/joint_states", "/franka_gripper/joint_states")
ZED = tuple(f"/{name}/zed_node/left/image_rect_color" for name in ("exterior_1", "exterior_2", "wrist"))
USB = tuple(f"/usb_cam_{i}/image_raw" for i in range(3))


def test_every_shipped_mapping_has_droids_cameras():
    assert mapping.shipped() == ["realsense_franka", "usb_cam_franka", "wvl_ros", "zed_franka"]
    for name in mapping.shipped():
        assert tuple(mapping.load_mapping(name).cameras) == CAMERAS


def test_auto_takes_the_one_that_fits_and_names_what_it_cannot_tell():
    found = mapping.choose(topics(*ZED, *FRANKA))
    assert (found.mapping.name, found.cameras["wrist_image_left"]) == ("zed_franka", ZED[2])
    found = mapping.choose(topics(*(f"/lab{n}" for n in (*USB, *FRANKA))), namespace="/lab")
    assert (found.mapping.name, found.joint_states) == ("usb_cam_franka", "/lab/franka/joint_states")
    with pytest.raises(BagError, match="fits several mappings: usb_cam_franka, zed_franka; name one with --mapping"):
        mapping.choose(topics(*ZED, *USB, *FRANKA))
    with pytest.raises(BagError, match=r"fits no shipped mapping; the nearest, 'zed_franka', lacks '/wrist/zed_node"):
        mapping.choose(topics(*ZED[:2], *FRANKA))


def test_a_file_of_ones_own_works_and_its_mistakes_are_named(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text(
        "cameras: {top: {topics: /top/image, crop: [0, 4, 16, 16], size: [32, 32]}}\n"
        "joint_states: /js\ngripper_states: /js\ngripper_joints: [{name: grip, open: 0, closed: 0.8}]\n"
    )
    own = mapping.load_mapping(str(path))
    assert (own.name, own.cameras["top"].size, own.gripper_joints[0].position(0.4)) == ("lab", (32, 32), 0.5)
    for wrong, sentence in {
        "joint_stats: /js": "unknown entry 'joint_stats'",
        "state_gap: -1": "lie between 0 and 10 s",
        "joint_names: [a, b]": "seven different joint_names",
        "cameras: {top: {topics: /t, size: [0, 4]}}": r"size \[height, width\]",
        "gripper_joints: [{name: g, open: 1, closed: 1}]": "different values for open and closed",
        "arms: 3": "something impossible",
    }.items():
        key = wrong.partition(":")[0]
        lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
        other = tmp_path / "wrong.yaml"
        other.write_text("\n".join([*lines, wrong]))
        with pytest.raises(ConfigError, match=sentence):
            mapping.load_mapping(str(other))
    with pytest.raises(UnknownNameError, match=r"mapping .* called 'zedd'"):
        mapping.load_mapping("zedd")
