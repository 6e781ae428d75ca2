"""Entry point of world_model_sim: the world node around the imagined world, in lockstep on simulated time."""

from __future__ import annotations

from wvl_ros.nodes.process import run


def main() -> None:
    """`ros2 run wvl_ros world_model_sim`."""
    run("wvl_ros.nodes.world_node", "WorldNode", imagined=True)


if __name__ == "__main__":
    main()
