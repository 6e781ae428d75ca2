"""Quality of service by purpose."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

LEASE = 2.0  # s after which a killed node is noticed

# Everything one observation consists of. The depth lets a subscriber be a few steps behind without losing any.
OBSERVATION = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)

# The recorder must lose nothing: two seconds of the fastest camera may wait for it.
RECORDING = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)

# The publishers by which the nodes notice each other's end.
CHUNK = QoSProfile(
    depth=50,
    reliability=ReliabilityPolicy.RELIABLE,
    liveliness=LivelinessPolicy.AUTOMATIC,
    liveliness_lease_duration=Duration(seconds=LEASE),
)
STATUS = QoSProfile(
    depth=50,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    liveliness=LivelinessPolicy.AUTOMATIC,
    liveliness_lease_duration=Duration(seconds=LEASE),
)
