"""The world model on Stable Video Diffusion with a pose for every frame, as Ctrl-World has it."""
