"""`wvl train world-model` fits the large models, tiny here, by the same command: cached latents, LoRA, resume."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.training import world_model
from wvl_ros.training.large_windows import Windows
from wvl_ros.training.latent_cache import latents, open_latents, row_shape, window_frames
from wvl_ros.world_model.cosmos.model import CosmosWorldModel
from wvl_ros.world_model.large import save_large
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.svd.model import SVDWorldModel

CONFIG = "training: {batch: 2, tracking_effort: 0.01, warmup: 1, learning_rate: 0.001, validation_episodes: 1}\n"


@pytest.fixture
def data(tmp_path: Path, make_episode: Callable[..., Episode]) -> Path:
    for i, outcome in enumerate(("success", "failure")):
        make_episode(seed=i, outcome=outcome, steps=25, size=16).save(tmp_path / "data" / f"{i}.safetensors")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "data"


def _train(folder: Path, *words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    world_model.add_arguments(parser)
    usual = ["--data", folder / "data", "--from", folder / "start", "--config", folder / "config.yaml"]
    return world_model.run(parser.parse_args([str(word) for word in (*usual, *words)]))


@pytest.mark.parametrize(("kind", "rank"), [("svd", 0), ("cosmos", 0), ("cosmos", 2)])
def test_a_large_model_is_trained_resumed_and_saved(
    tmp_path: Path, data: Path, kind: str, rank: int, request: pytest.FixtureRequest
) -> None:
    make = request.getfixturevalue(f"make_{kind}")
    save_large(make(actions_per_frame=3), tmp_path / "start", torch.float32)
    out = tmp_path / "out"
    validated = ("--validation", data) if rank else ()
    assert _train(tmp_path, "--out", out, "--lora", rank, "--steps", 2, *validated)["step"] == 2
    halves = _train(tmp_path, "--out", out, "--lora", rank, "--steps", 3, *validated)
    assert halves["step"] == 3
    assert all(value == value for value in halves["losses"].values())
    start, end = load_world_model(tmp_path / "start"), load_world_model(out)
    assert set(start.state_dict()) == set(end.state_dict())
    moved = {
        name
        for name, t in end.state_dict().items()
        if not torch.allclose(t.float(), start.state_dict()[name], atol=1e-2)
    }
    assert not any(name.startswith("vae.") for name in moved)
    assert (out / "adapter").is_dir() == bool(rank)
    if rank:
        assert "outcome" in halves["validation"]
        assert list(out.glob("validation*/*.mp4"))


def test_windows_of_svd_show_what_a_rollout_sees(data: Path, make_svd: Callable[..., SVDWorldModel]) -> None:
    model = make_svd(actions_per_frame=3)
    cache = open_latents(data, model)
    windows = Windows(model, cache, torch.ones(len(cache)))
    drawn = windows.draw(64, torch.Generator().manual_seed(0))
    assert set((drawn[:, 1] - drawn[:, 2]).remainder(2).tolist()) == {0}  # whole calls of two frames
    assert int(drawn[:, 1].max()) <= 6
    batch = windows.batch(torch.tensor([1, 6, 2]))
    whole = latents(cache, cache.frame_start[1] + torch.arange(9), row_shape(model))
    # history [0, -3, -2]: the rollout's first frame, and the ends of the calls before the last and the last but one
    assert torch.equal(batch.latents[0], whole[[2, 2, 4, 6, 7, 8]])
    assert batch.truth.known.tolist() == [[1.0, 1.0]]
    with torch.no_grad():
        views = _views(data, 1, (8, 16))
        assert torch.allclose(model.encode(views[6:7])[0], batch.latents[0, 3], atol=5e-3)  # float16 on disk


def test_windows_of_cosmos_join_first_recent_and_new_frames(
    data: Path, make_cosmos: Callable[..., CosmosWorldModel]
) -> None:
    model = make_cosmos(actions_per_frame=3)
    assert window_frames(model, 4).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    cache = open_latents(data, model)
    assert cache.frame_count.tolist() == [2, 2]
    batch = Windows(model, cache, torch.ones(len(cache))).batch(torch.tensor([0, 4, 0]))
    assert batch.poses.shape == (1, 5, 7)
    with torch.no_grad():
        video = _views(data, 0, (16, 32))[window_frames(model, 4)]
        assert torch.allclose(model.encode(video[None]), batch.latents, atol=5e-3)


def test_a_large_model_begins_with_published_weights(
    tmp_path: Path, data: Path, make_cosmos: Callable[..., CosmosWorldModel]
) -> None:
    (tmp_path / "config.yaml").write_text("model: {size: svd}\n" + CONFIG)
    parser = argparse.ArgumentParser()
    world_model.add_arguments(parser)
    words = ["--data", str(data), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")]
    with pytest.raises(ConfigError, match="wvl import"):
        world_model.run(parser.parse_args(words))
    save_large(make_cosmos(), tmp_path / "start", torch.float32)
    with pytest.raises(ConfigError, match="'svd', but the checkpoint is 'cosmos'"):
        _train(tmp_path, "--out", tmp_path / "out")


def _views(data: Path, episode: int, size: tuple[int, int]) -> torch.Tensor:
    from wvl_ros.sans.episodes import list_episodes
    from wvl_ros.training.latent_cache import read_views

    return torch.from_numpy(read_views(list_episodes(data)[episode], size, 3))
