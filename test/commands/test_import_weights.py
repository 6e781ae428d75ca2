"""`wvl import world-model`: from a published file to a folder that loads."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from wvl_ros.commands import import_weights
from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.world_model.cosmos.model import CosmosWorldModel
from wvl_ros.world_model.loading import load_world_model


def _arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    import_weights.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_a_folder_of_diffusers_becomes_ours(tmp_path: Path, make_cosmos: Callable[..., CosmosWorldModel]) -> None:
    source = make_cosmos()
    source.transformer.save_pretrained(tmp_path / "theirs" / "transformer")
    source.vae.save_pretrained(tmp_path / "theirs" / "vae")
    config = tmp_path / "model.yaml"
    config.write_text(yaml.safe_dump({"model": {"size": "cosmos", "image_height": 16, "image_width": 32}}))
    words = ("cosmos-diffusers", tmp_path / "theirs", "--out", tmp_path / "ours", "--config", config)
    result = import_weights.run(_arguments(*words))
    assert result["model"] == "CosmosWorldModel"
    assert "heads" in result["summary"]
    again = load_world_model(tmp_path / "ours").state_dict()
    for name, tensor in source.transformer.state_dict().items():
        assert torch.equal(again[f"transformer.{name}"], tensor.to(torch.bfloat16))
    with pytest.raises(ConfigError, match="not empty"):
        import_weights.run(_arguments(*words))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--clip"):
        import_weights.run(_arguments("ctrl-world", tmp_path / "a.pt", "--out", tmp_path / "out"))
    with pytest.raises(ConfigError, match="--vae"):
        import_weights.run(_arguments("cosmos", tmp_path / "a.pt", "--out", tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"no weights '.*a.pt'"):
        import_weights.run(_arguments("cosmos", tmp_path / "a.pt", "--vae", tmp_path, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
