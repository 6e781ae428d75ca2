"""Tiny vision-language models with random weights and a tiny tokenizer, as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
SEEN = ["yes no Yes No", "put the red cube on the green disk", "user system assistant seconds", "0.1 2.3 4.5 6.7 8.9"]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SEEN * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0])


def _build(folder: Path, family: str, seed: int, spread: float) -> Path:
    import torch
    import transformers

    tokenizer = _tokenizer()
    numbers = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    vision["initializer_range"] = text["initializer_range"] = spread
    if family == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    else:
        text.pop("head_dim")
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    kind = {"qwen3_vl": "Qwen3VL", "qwen2_5_vl": "Qwen2_5_VL"}[family]
    config = getattr(transformers, f"{kind}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=numbers["vision_start"],
        vision_end_token_id=numbers["vision_end"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_vlm(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a tiny one: `family`, `name` of the folder, `seed` and standard deviation of the weights."""

    def make(family: str = "qwen3_vl", name: str = "vlm", seed: int = 0, spread: float = 0.02) -> Path:
        return _build(tmp_path / name, family, seed, spread)

    return make
