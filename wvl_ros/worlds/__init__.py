"""Worlds: the interface and the places behind it. `droid.py` holds DROID's conventions."""

import os

# MuJoCo chooses its renderer when it is first imported; without a display only EGL (or OSMesa) works.
os.environ.setdefault("MUJOCO_GL", "egl")
