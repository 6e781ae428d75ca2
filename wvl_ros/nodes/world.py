"""Entry point of the world node: the tabletop or a recorded episode behind ROS topics."""

from __future__ import annotations

from wvl_ros.nodes.process import run


def main() -> None:
    """`ros2 run wvl_ros world`."""
    run("wvl_ros.nodes.world_node", "WorldNode")


if __name__ == "__main__":
    main()
