"""The RViz layout, checked without RViz: plugins, topics, docks."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import yaml

from wvl_ros.graphs import CAMERAS, layout

# Of rviz_common and rviz_default_plugins; RViz shows an error for any other name.
PANELS = {"rviz_common/Displays", "rviz_common/Time"}
DISPLAYS = {f"rviz_default_plugins/{name}" for name in ("Grid", "Image", "RobotModel", "TF")}
TOOLS = {f"rviz_default_plugins/{name}" for name in ("Interact", "MoveCamera", "FocusCamera", "Measure", "Select")}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return dict(yaml.safe_load(layout().read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def images(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [d for d in config["Visualization Manager"]["Displays"] if d["Class"].endswith("/Image")]


def test_all_plugins_exist(config: dict[str, Any]) -> None:
    manager = config["Visualization Manager"]
    assert {panel["Class"] for panel in config["Panels"]} <= PANELS
    assert {display["Class"] for display in manager["Displays"]} <= DISPLAYS
    assert {tool["Class"] for tool in manager["Tools"]} <= TOOLS
    assert manager["Views"]["Current"]["Class"] == "rviz_default_plugins/Orbit"


def test_every_camera_is_shown_imagined_and_real(images: list[dict[str, Any]]) -> None:
    wanted = [f"/{world}/{camera}/image_raw" for world in ("imagined", "real") for camera in CAMERAS]
    assert [image["Topic"]["Value"] for image in images] == wanted
    assert all(image["Enabled"] and image["Topic"]["Reliability Policy"] == "Reliable" for image in images)


def test_both_robots_stand_in_the_fixed_frame(config: dict[str, Any]) -> None:
    manager = config["Visualization Manager"]
    robots = [d for d in manager["Displays"] if d["Class"].endswith("/RobotModel")]
    assert {(d["Description Topic"]["Value"], d["TF Prefix"]) for d in robots} == {
        (f"/{world}/robot_description", world) for world in ("real", "imagined")
    }
    assert manager["Global Options"]["Fixed Frame"] == "base"


def test_the_window_state_places_every_dock(config: dict[str, Any], images: list[dict[str, Any]]) -> None:
    """The state is Qt's QMainWindow.saveState: its marker, its version, and the docks by their UTF-16 names."""
    state = bytes.fromhex(config["Window Geometry"]["QMainWindow State"])
    assert struct.unpack(">II", state[:8]) == (0xFF, 0)
    for item in (*config["Panels"], *images):
        name = item["Name"].encode("utf-16-be")
        assert struct.pack(">I", len(name)) + name in state, f"no dock for '{item['Name']}'"
        assert item["Name"] in config["Window Geometry"]
