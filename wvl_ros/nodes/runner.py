"""Entry point of the runner node: runs episodes and shows how they go."""

from __future__ import annotations

from wvl_ros.nodes.process import run


def main() -> None:
    """`ros2 run wvl_ros runner`."""
    run("wvl_ros.nodes.runner_node", "RunnerNode")


if __name__ == "__main__":
    main()
