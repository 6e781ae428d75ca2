"""`ros2 launch wvl_ros imagine.launch.py --show-args`. The graph itself is in wvl_ros/graphs.py."""

from launch import LaunchDescription

from wvl_ros.graphs import IMAGINE
from wvl_ros.launching import describe


def generate_launch_description() -> LaunchDescription:
    """The graph `imagine`."""
    return describe(IMAGINE)
