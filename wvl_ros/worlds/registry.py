"""Worlds by name, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wvl_ros.errors import UnknownNameError
from wvl_ros.worlds.interface import World

WORLDS = {
    "tabletop": ("wvl_ros.worlds.tabletop", "TabletopWorld"),
    "recorded": ("wvl_ros.worlds.recorded", "RecordedWorld"),
    "imagined": ("wvl_ros.worlds.imagined", "ImaginedWorld"),
}


def make_world(name: str, **settings: Any) -> World:
    """The world called `name`, made with `settings` (image_height, image_width, max_steps; checkpoint for 'imagined').

    Raises:
        UnknownNameError: no such world.
        CheckpointError: the imagined world's weights are missing or do not fit.
    """
    if name not in WORLDS:
        raise UnknownNameError("world", name, WORLDS)
    module, attribute = WORLDS[name]
    world = getattr(import_module(module), attribute)(**settings)
    assert isinstance(world, World)
    return world
