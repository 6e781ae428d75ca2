"""Episodes as the large world models train on them: latents of the codec, computed once and kept on disk.

They lie beside the decoded images of other trainers, in the cache of `wvl_ros.sans.cache`: whole episodes at a time, so
that a build that was killed goes on, and new episodes are added to the others. `svd` keeps a row of latents a frame.
`cosmos`, whose codec joins frames over time, keeps a row for each window: first frame, recent ones, and the next ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wvl_ros.sans import cache as decoded
from wvl_ros.sans.episode import Episode
from wvl_ros.sans.episodes import EpisodeEntry
from wvl_ros.training.frame_cache import COLUMNS, FrameCache, arrange, check_sizes, check_stride, episode_numbers
from wvl_ros.world_model import patches
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined_start import is_calibrated

WINDOW_STRIDE = 4  # frames between the windows of cosmos: one latent frame
_BATCH = 8  # frames encoded at a time


def open_latents(path: Path, model: Any) -> FrameCache:
    """The cache of a dataset or folder for an `SVDWorldModel` or `CosmosWorldModel`; `latents` reads its frames.

    Raises:
        EpisodeError: an episode lacks a camera, images at the model's steps, or is of another rate or of several sizes.
    """
    config, every = model.config, int(model.config["actions_per_frame"])
    windows = hasattr(model, "transformer")
    shape = row_shape(model)

    def frames(entry: EpisodeEntry) -> Iterator[NDArray[np.uint8]]:
        views = torch.from_numpy(read_views(entry, (int(config["image_height"]), int(config["image_width"])), every))
        if windows:
            for start in range(0, max(1, len(views) - 1), WINDOW_STRIDE):
                video = views[window_frames(model, start).clamp(0, len(views) - 1)]
                yield _bytes(model.encode(video[None]))
        else:
            for start in range(0, len(views), _BATCH):
                yield _bytes(model.encode(views[start : start + _BATCH]))

    def facts(episode: Episode) -> dict[str, Any]:
        return {"calibrated": is_calibrated(episode, str(config["rig"]))}

    size = f"{config['image_height']}x{config['image_width']}"
    kind = f"windows{config['history_frames']}_{model.frames_per_call}" if windows else "frames"
    recipe = decoded.Recipe(
        name=f"latents2_{kind}_{size}_every{every}_{config['rig'] or 'none'}_{_codec(model)}",
        frame_shape=(2 * int(np.prod(shape)),),
        columns=COLUMNS,
        dtype=np.float32,
        frames=frames,
        numbers=episode_numbers,
        facts=facts,
    )
    with torch.no_grad():
        return arrange(decoded.open_cache(path, recipe), every)


def latents(cache: FrameCache, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows (N,) of a cache as float32 (N, *shape)."""
    stored = np.ascontiguousarray(cache.frames[rows.numpy()])
    return torch.from_numpy(stored.view(np.float16).reshape(len(rows), *shape)).float()


def row_shape(model: Any) -> tuple[int, ...]:
    """Of one row: (4, 3 h, w) of `svd`, (16, T, 3 h, w) of `cosmos`."""
    shape = tuple(int(n) for n in model.noise_shape)
    return shape if hasattr(model, "transformer") else shape[1:]


def window_frames(model: Any, start: int) -> Tensor:
    """Which frames the window of `cosmos` at frame `start` shows: first, recent and new ones; some before 0."""
    new = torch.arange(start + 1, start + 1 + model.frames_per_call)
    history = int(model.config["history_frames"])
    if history == 0:
        return torch.cat([torch.tensor([start]), new])
    return torch.cat([torch.tensor([0]), torch.arange(start + 1 - history, start + 1), new])


def read_views(entry: EpisodeEntry, size: tuple[int, int], every: int) -> NDArray[np.uint8]:
    """All images of an episode at steps 0, every, 2 every, ...: uint8 (M, 3, H, W, 3)."""
    check_stride(entry.episode_id or entry.name, entry.image_stride, every)
    step, start, views = every // entry.image_stride, 0, []
    for block in entry.blocks(droid.CAMERAS):
        check_sizes(entry.episode_id or entry.name, {name: stack.shape[1:3] for name, stack in block.items()})
        own = [patches.resize(block[camera][-start % step :: step], *size) for camera in droid.CAMERAS]
        views.append(np.stack(own, 1))
        start += len(block[droid.CAMERAS[0]])
    return np.concatenate(views)


def _bytes(encoded: Tensor) -> NDArray[np.uint8]:
    values = encoded.to("cpu", torch.float16).contiguous().numpy()
    return values.reshape(len(values), -1).view(np.uint8)


def _codec(model: Any) -> str:
    """Changes with the codec's weights and settings."""
    digest = hashlib.sha256(model.vae.to_json_string().encode())
    for tensor in model.vae.state_dict().values():
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
