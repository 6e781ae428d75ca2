"""Fixtures for all tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from wvl_ros.sans.episode import Episode
from wvl_ros.worlds import droid

if TYPE_CHECKING:
    from wvl_ros.world_model.cosmos.model import CosmosWorldModel
    from wvl_ros.world_model.svd.model import SVDWorldModel

# Before torch is imported. One thread a test process: with more threads than cores they wait for each other most of the
# time, and the children of xdist inherit what is set here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("wvl", deadline=None)  # a busy machine is no failure
settings.load_profile("wvl")


def _episode(
    steps: int = 13,
    seed: int = 0,
    size: int = 64,
    outcome: str = "success",
    source: str = "expert/tabletop",
    instruction: str = "put the red cube on the green disk",
) -> Episode:
    """A smooth motion under images that change slowly; the last third is a success state when the outcome says so."""
    rng = np.random.default_rng(seed)
    phase = np.linspace(0, 1, steps)[:, None]
    joints = droid.RESET_JOINTS + 0.2 * phase * rng.uniform(-1, 1, 7)
    poses = np.stack([droid.forward_kinematics(q) for q in joints])
    grippers = np.clip(phase * 2 - 1, 0, 1)
    base = rng.integers(0, 255, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)
    count = (steps - 1) // 3 + 1
    stack = np.stack([np.roll(base, 2 * i, axis=1) for i in range(count)]).astype(np.uint8)
    reward = np.zeros(steps - 1, np.float32)
    if outcome == "success":
        reward[-(steps // 3) :] = 1.0
    return Episode(
        images={camera: np.roll(stack, i, axis=3).copy() for i, camera in enumerate(droid.CAMERAS)},
        joint_position=joints,
        cartesian_position=poses,
        gripper_position=grippers,
        action=np.hstack([poses[1:], grippers[1:]]),
        reward=reward,
        task="pick_place",
        instruction=instruction,
        outcome=outcome,
        source=source,
        episode_id=f"synthetic_{seed}",
        image_stride=3,
    )


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """Makes a small synthetic episode: steps, seed, size, outcome, source, instruction."""
    return _episode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# Large models of the same make as the real ones, but tiny.
TINY_SVD: dict[str, Any] = {
    "unet_config": {
        "block_out_channels": [32, 32],
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
        "num_attention_heads": [1, 1],
        "cross_attention_dim": 32,
        "layers_per_block": 1,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
    },
    "vae_config": {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "layers_per_block": 1,
        "sample_size": 16,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "vocab_size": 32,
        "bos_token_id": 30,
        "eos_token_id": 31,
        "pad_token_id": 31,
    },
    "image_height": 8,
    "image_width": 16,
    "num_frames": 3,
    "actions_per_frame": 2,
    "history": [0, -3, -2],
    "sampling_steps": 2,
}
TINY_COSMOS: dict[str, Any] = {
    "transformer_config": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "text_embed_dim": 8,
        "adaln_lora_dim": 4,
        "num_actions": 4,
    },
    "vae_config": {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "image_height": 16,
    "image_width": 32,
    "sampling_steps": 2,
}


@pytest.fixture
def make_svd() -> Callable[..., SVDWorldModel]:
    """Makes a tiny one with random weights, fixed by `seed`; other settings go to its configuration."""
    import torch

    from wvl_ros.world_model.svd.model import SVDWorldModel

    def make(seed: int = 0, **config: Any) -> SVDWorldModel:
        torch.manual_seed(seed)
        return SVDWorldModel(**(TINY_SVD | {"text": False} | config)).eval()

    return make


@pytest.fixture
def make_cosmos() -> Callable[..., CosmosWorldModel]:
    """Makes a tiny one with random weights, fixed by `seed`; other settings go to its configuration."""
    import torch

    from wvl_ros.world_model.cosmos.model import CosmosWorldModel

    def make(seed: int = 0, **config: Any) -> CosmosWorldModel:
        torch.manual_seed(seed)
        return CosmosWorldModel(**(TINY_COSMOS | config)).eval()

    return make
