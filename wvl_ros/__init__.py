"""wvl_ros: closed-loop co-improvement of a video world model and a vision-language-action policy on a Franka arm."""

__version__ = "0.1.0"
