"""The video world model: networks, codec, kinematics, sampler and reward head. Nothing of worlds or ROS is imported
here.
"""
