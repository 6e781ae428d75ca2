"""`ros2 launch wvl_ros real_robot.launch.py --show-args`. The graph itself is in wvl_ros/graphs.py."""

from launch import LaunchDescription

from wvl_ros.graphs import REAL_ROBOT
from wvl_ros.launching import describe


def generate_launch_description() -> LaunchDescription:
    """The graph `real_robot`."""
    return describe(REAL_ROBOT)
