"""ROS nodes: shells around worlds, policies and recordings. Nothing outside this folder imports rclpy."""
