"""Types of packages that this one does not know are found where they are installed."""

from __future__ import annotations

from wvl_ros.sans.bags.message_definitions import find_definition, is_stamped
from wvl_ros.sans.bags.topics import message_types


def test_a_type_of_another_package_with_what_it_consists_of(tmp_path, monkeypatch):
    folder = tmp_path / "share" / "lab_msgs" / "msg"
    folder.mkdir(parents=True)
    (folder / "Grip.msg").write_text("std_msgs/Header header\nFinger[2] fingers\nstring note\n")
    (folder / "Finger.msg").write_text("float64 width\n")
    (folder / "Torn.msg").write_text("Missing part\n")
    assert not find_definition("lab_msgs/msg/Grip")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert find_definition("lab_msgs/msg/Grip")
    assert is_stamped("lab_msgs/msg/Grip")
    assert not is_stamped("lab_msgs/msg/Finger")
    assert len(message_types().hash_rihs01("lab_msgs/msg/Grip")) > 40
    for name in ("lab_msgs/msg/Torn", "lab_msgs/msg/Other", "lab_msgs/srv/Grip", "nothing"):
        assert not find_definition(name)


def test_which_messages_begin_with_a_stamp():
    stamped = {"sensor_msgs/msg/Image": True, "rosgraph_msgs/msg/Clock": True, "tf2_msgs/msg/TFMessage": False}
    for kind, expected in stamped.items():
        assert find_definition(kind)
        assert is_stamped(kind) is expected
