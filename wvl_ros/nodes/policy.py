"""Entry point of the policy node: observations in, action chunks out."""

from __future__ import annotations

from wvl_ros.nodes.process import run


def main() -> None:
    """`ros2 run wvl_ros policy`."""
    run("wvl_ros.nodes.policy_node", "PolicyNode")


if __name__ == "__main__":
    main()
