"""Qwen-VL from a folder: the text is what transformers' processors write, damage is one sentence, no code runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.rewards.vlm.clip import Clip
from wvl_ros.rewards.vlm.model import QwenVL


def clip(count: int) -> Clip:
    return Clip(np.zeros((count, 64, 64, 3), np.uint8), np.arange(count) * 0.4)


@pytest.mark.parametrize("count", [1, 5, 16])
def test_times_and_placeholders_are_written_as_by_the_processor(make_vlm: Callable[..., Path], count: int) -> None:
    qwen = QwenVL.from_pretrained(make_vlm("qwen3_vl"))
    grid = ((count + 1) // 2, 4, 6)
    theirs = Qwen3VLProcessor.replace_video_token(
        SimpleNamespace(
            video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
            video_token="<|video_pad|>",
            vision_start_token="<|vision_start|>",
            vision_end_token="<|vision_end|>",
            _calculate_timestamps=partial(Qwen3VLProcessor._calculate_timestamps, None),
        ),
        {
            "video_grid_thw": torch.tensor([grid]),
            "video_metadata": [SimpleNamespace(fps=2.5, frames_indices=np.arange(count))],
        },
        0,
    )
    text = qwen.text(clip(count), "Done?", grid)
    assert text == f"<|im_start|>user\n{theirs}Done?<|im_end|>\n<|im_start|>assistant\n"


def test_the_older_family_has_the_time_in_its_positions(make_vlm: Callable[..., Path]) -> None:
    qwen = QwenVL.from_pretrained(make_vlm("qwen2_5_vl"))
    inputs = qwen.inputs([clip(16), clip(3)], ["Done?", "Is it done?"], 56 * 56, 56 * 56)
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([0.8, 0.8])
    assert inputs["video_grid_thw"].tolist() == [[8, 4, 4], [2, 4, 4]]
    video = inputs["mm_token_type_ids"] == 2
    assert video.sum(1).tolist() == [8 * 4, 2 * 4]  # four patches a token
    assert (inputs["input_ids"][video] == qwen.model.config.video_token_id).all()
    assert inputs["attention_mask"][0].all()
    assert not inputs["attention_mask"][1, 0]
    assert inputs["attention_mask"][:, -1].all()
    words = qwen.tokenizer.decode(inputs["input_ids"][0])
    assert words.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_st")


def test_the_same_pictures_taken_more_slowly_give_another_answer(make_vlm: Callable[..., Path]) -> None:
    qwen = QwenVL.from_pretrained(make_vlm("qwen2_5_vl", spread=0.3))
    slow = Clip(clip(8).frames, clip(8).seconds * 10)
    logits = [qwen.logits(qwen.inputs([one], ["Done?"], 56 * 56, 56 * 56)) for one in (clip(8), slow)]
    assert not torch.allclose(*logits, atol=0.01)


def test_precision_and_device_are_chosen(make_vlm: Callable[..., Path]) -> None:
    folder = make_vlm()
    assert QwenVL.from_pretrained(folder, "cpu").model.dtype == torch.float32
    qwen = QwenVL.from_pretrained(folder, "cpu", "bfloat16")
    assert qwen.model.dtype == torch.bfloat16
    assert qwen.logits(qwen.inputs([clip(4)], ["Done?"], 1024, 4096)).dtype == torch.float32
    with pytest.raises(ConfigError, match="no device 'gpu' here"):
        QwenVL.from_pretrained(folder, "gpu")
    with pytest.raises(ConfigError, match="dtype must be one of auto, float32"):
        QwenVL.from_pretrained(folder, dtype="float8")


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def lacking(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "q_proj" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def with_another_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|video_pad|>", "<|other_pad|>"))


def of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def broken(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def removed(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut_off, "weights in .* cannot be loaded; copy the folder again"),
        (lacking, "lacks 1 of its model's weights, .*q_proj"),
        (of_another_shape, "weights in .* cannot be loaded|lacks .* of its model's weights"),
        (pickled, "pytorch_model.bin' is a pickle"),
        (without_tokenizer, "does not hold the model's tokenizer"),
        (with_another_tokenizer, "tokenizer does not fit its model"),
        (of_another_kind, "model of type 'llama'; the judge 'vlm' knows: qwen2_5_vl, qwen3_vl"),
        (broken, "config.json' cannot be read"),
        (removed, "no folder .* with a vision-language model"),
    ],
)
def test_damage_is_one_sentence(make_vlm: Callable[..., Path], damage: Callable[[Path], None], sentence: str) -> None:
    folder = make_vlm()
    damage(folder)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        QwenVL.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_never_runs(make_vlm: Callable[..., Path]) -> None:
    folder = make_vlm()
    path, ran = folder / "tokenizer_config.json", folder / "ran"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "tokens.Own"]}}
    path.write_text(json.dumps(config | {"tokenizer_class": "Own"}))
    (folder / "tokens.py").write_text(
        f"import transformers\nopen({str(ran)!r}, 'w')\nclass Own(transformers.PreTrainedTokenizerFast): pass\n"
    )
    QwenVL.from_pretrained(folder)
    assert not ran.exists()
