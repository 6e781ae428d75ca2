"""Entry point of the recorder node: a bag, a video and a contact sheet an episode."""

from __future__ import annotations

from wvl_ros.nodes.process import run


def main() -> None:
    """`ros2 run wvl_ros recorder`."""
    run("wvl_ros.nodes.recorder_node", "RecorderNode")


if __name__ == "__main__":
    main()
