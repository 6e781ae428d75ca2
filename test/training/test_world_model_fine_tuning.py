"""Fine-tuning a world model: it goes on from what the checkpoint knows, replays old episodes, and LoRA is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wvl_ros.errors import ConfigError
from wvl_ros.sans.episode import Episode
from wvl_ros.training.lora import add_lora
from wvl_ros.training.world_model_data import TrainingData, open_data
from wvl_ros.training.world_model_run import Sources, fine_tuning, train
from wvl_ros.training.world_model_settings import Budget, WorldModelTraining, build_model
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.model import WorldModel

SETTINGS = WorldModelTraining(
    batch=4, tracking_effort=0.02, warmup=1, reward_fit_share=0.0, other_rigs=0.0, bfloat16=False,
    model={"channels": 16, "condition_dim": 32},
)  # fmt: skip
OUTCOMES = ("success", "near_success", "failure")


@pytest.fixture
def episodes(tmp_path: Path, make_episode: Callable[..., Episode]) -> Callable[..., Path]:
    """Makes a folder of three episodes with an instruction."""

    def make(name: str, instruction: str) -> Path:
        for i, outcome in enumerate(OUTCOMES):
            episode = make_episode(seed=i, outcome=outcome, steps=13, instruction=instruction)
            episode.save(tmp_path / name / f"{i}.safetensors")
        return tmp_path / name

    return make


@pytest.fixture
def start(episodes: Callable[..., Path]) -> WorldModel:
    """A checkpoint with fresh weights."""
    torch.manual_seed(0)
    return build_model(SETTINGS, _data(episodes("old", "push the cube")).cache)


def test_a_fine_tune_goes_on_from_the_checkpoint_and_learns_new_words(
    tmp_path: Path, episodes: Callable[..., Path], start: WorldModel
) -> None:
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    new, old = episodes("new", "push the banana"), tmp_path / "old"
    settings = fine_tuning(SETTINGS, start)
    train(settings, Sources(new, replay=old, start=start), tmp_path / "out", Budget(2, None))
    after = load_world_model(tmp_path / "out")
    assert after.config["vocabulary"] == [*start.config["vocabulary"], "banana"]
    # Two updates of 3e-4: the weights are the checkpoint's, but for a little, and the servo is wholly; the grip is
    # fitted to what there is now before these.
    for name, tensor in after.state_dict().items():
        if name.startswith("grip."):
            continue
        rows = slice(len(before[name]))
        known = tensor[rows] if name.endswith("instruction.embedding.weight") else tensor
        atol = 0.005 + before[name].abs().max() * 2**-8  # bfloat16 on disk
        assert torch.allclose(known, before[name], atol=float(atol)), name
    assert not torch.equal(after.unet.stem.weight, before["unet.stem.weight"])


def test_old_episodes_get_their_share_of_a_batch(episodes: Callable[..., Path]) -> None:
    old, new = episodes("old", "push the cube"), episodes("new", "push the banana")
    settings = replace(SETTINGS, replay_share=0.25)
    data = open_data(settings, settings.model, new, old)
    weights = data.weights(settings)
    assert data.replayed.tolist() == 2 * ([False] * 3 + [True] * 3)  # and all of them in the mirror
    assert weights[data.replayed].sum() == pytest.approx(0.25)
    assert weights.sum() == pytest.approx(1.0)
    # Each episode is still itself.
    assert data.cache.instructions[4] == "push the cube"
    alone = _data(old).cache
    episode, index = torch.tensor([1, 2]), torch.tensor([0, 3])
    assert torch.equal(data.cache.frame(episode + 3, index), alone.frame(episode, index))
    assert torch.equal(data.cache.chunk(episode + 3, index), alone.chunk(episode, index))


def test_lora_trains_an_adapter_and_saves_it_merged_and_alone(
    tmp_path: Path, episodes: Callable[..., Path], start: WorldModel
) -> None:
    from peft import PeftModel

    new, out = episodes("new", "push the cube"), tmp_path / "out"
    torch.manual_seed(0)
    untouched = build_model(SETTINGS, _data(new).cache)
    untouched.load_state_dict(start.state_dict())
    settings = fine_tuning(SETTINGS, start)
    train(settings, Sources(new, start=start, lora_rank=2), out, Budget(3, None))
    merged = load_world_model(out)
    assert set(merged.state_dict()) == set(untouched.state_dict())
    adapted = PeftModel.from_pretrained(untouched, str(out / "adapter")).merge_and_unload()
    changed = 0
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, adapted.state_dict()[name], atol=2e-3, rtol=2**-7), name
        changed += int(not torch.equal(tensor, start.state_dict().get(name, tensor)))
    assert changed
    size = (out / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < 4 * sum(p.numel() for p in untouched.parameters()) / 2
    # A stopped run goes on.
    result = train(settings, Sources(new, start=load_world_model(out), lora_rank=2), out, Budget(5, None))
    assert result["step"] == 5


def test_what_does_not_fit_the_checkpoint_is_refused(start: WorldModel) -> None:
    with pytest.raises(ConfigError, match="`channels`"):
        fine_tuning(replace(SETTINGS, model={"channels": 64}), start)
    with pytest.raises(ConfigError, match="rank"):
        add_lora(start, -1)


def _data(folder: Path) -> TrainingData:
    return open_data(SETTINGS, SETTINGS.model, folder)
