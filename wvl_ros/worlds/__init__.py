"""Worlds: the interface and the places behind it. `droid.py` holds DROID's conventions."""
