"""Parameters declared with what they mean and may be."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import IntegerRange, ParameterDescriptor
from rclpy.node import Node

LARGEST = 2**62


def declare(node: Node, name: str, default: Any, description: str, *, least: int | None = None) -> Any:
    """Declares a parameter that is fixed once the node runs, and returns its value. `least`: smallest integer."""
    descriptor = ParameterDescriptor(description=description, read_only=True)
    if least is not None:
        descriptor.integer_range = [IntegerRange(from_value=least, to_value=LARGEST, step=1)]
    return node.declare_parameter(name, default, descriptor).value
