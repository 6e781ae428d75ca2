"""What a published OpenVLA-OFT checkpoint is made of, and what it leaves unsaid and a user has to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wvl_ros.errors import CheckpointError, ConfigError, UnknownNameError
from wvl_ros.policies.openvla_oft.actions import ACTION_DIM, BINS, CONVENTIONS
from wvl_ros.worlds.droid import CAMERAS

PATCH = 14  # pixels, both vision transformers


@dataclass(frozen=True)
class Tower:
    """A vision transformer: width of its tokens, layers, their heads and inner width, and register tokens."""

    width: int
    layers: int
    heads: int
    inner: int
    registers: int = 0


# By the names timm gives them: `config.json` says no more of them than that.
TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": Tower(1024, 24, 16, 4096, registers=4),
    "vit_so400m_patch14_siglip_224": Tower(1152, 27, 16, 4304),
}
# What transformers 4.40, with which the checkpoints were trained, takes where `text_config` is silent. Llama 2 itself
# has an epsilon of 1e-5, but OpenVLA's fine-tuning never saw it.
LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
# What would need another network; a checkpoint may say these, or nothing.
_TEXT = {"model_type": "llama", "hidden_act": "silu", "rope_theta": 10000.0, "rope_scaling": None}
_TEXT |= {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
_WHOLE = {"model_type": "openvla", "arch_specifier": "no-align+fused-gelu-mlp", "use_fused_vision_backbone": True}
_WHOLE |= {"image_resize_strategy": "resize-naive", "timm_override_act_layers": [None, None], "n_action_bins": BINS}


@dataclass(frozen=True)
class OpenVLAConfig:
    """Sizes of the network.

    Attributes:
        dino, siglip: the two vision transformers.
        image_size: side of the images in pixels.
        llama: arguments of transformers' `LlamaConfig`.
        padding: tokens of the vocabulary past its end, to fill it up; the action tokens come right before them.
        longest: tokens a prompt may have.
    """

    dino: Tower
    siglip: Tower
    image_size: int
    llama: Mapping[str, Any]
    padding: int
    longest: int

    @property
    def patches(self) -> int:
        """Tokens of an image."""
        return (self.image_size // PATCH) ** 2

    @property
    def width(self) -> int:
        """Of the language model's tokens."""
        return int(self.llama["hidden_size"])

    @property
    def first_action_token(self) -> int:
        """Number of the first of the 256 action tokens: 31744 of those published."""
        return int(self.llama["vocab_size"]) - self.padding - BINS

    @classmethod
    def from_published(cls, table: Mapping[str, Any], path: Path) -> OpenVLAConfig:
        """From what `config.json` holds; `path` names it in errors.

        Raises:
            CheckpointError: it describes another network.
        """
        text = table.get("text_config")
        if not isinstance(text, dict):
            raise CheckpointError(f"'{path}' is no configuration of OpenVLA: its text_config is missing.")
        for values, wanted in ((table, _WHOLE), (text, _TEXT)):
            for key, value in wanted.items():
                if key in values and values[key] != value:
                    raise CheckpointError(
                        f"'{path}' describes another network: {key} is {values[key]!r}, but OpenVLA-OFT has {value!r}."
                    )
        names, sizes = table.get("timm_model_ids"), table.get("image_sizes")
        known = [TOWERS.get(str(name)) for name in names] if isinstance(names, list) else []
        towers = [tower for tower in known if tower is not None]
        if len(known) != 2 or [tower.registers > 0 for tower in towers] != [True, False]:
            raise CheckpointError(f"'{path}' names the vision transformers {names!r}; known are: {', '.join(TOWERS)}.")
        size = sizes[0] if isinstance(sizes, list) and sizes else None
        if not isinstance(size, int) or size < PATCH or size % PATCH or sizes != [size] * 2:
            raise CheckpointError(f"'{path}' has image_sizes {sizes!r}, which should be a multiple of {PATCH}, twice.")
        numbers = {key: text.get(key, value) for key, value in LLAMA.items()}
        if text.get("num_key_value_heads") is None:
            numbers["num_key_value_heads"] = numbers["num_attention_heads"]
        numbers |= {
            key: table.get(key, value) for key, value in {"pad_to_multiple_of": 64, "llm_max_length": 2048}.items()
        }
        for key, value in numbers.items():
            if not isinstance(value, (int, float)) or value <= 0:
                raise CheckpointError(f"'{path}' has the {key} {value!r}, which should be a positive number.")
        if numbers["hidden_size"] % numbers["num_attention_heads"]:
            raise CheckpointError(f"'{path}' has a hidden_size that is no multiple of num_attention_heads.")
        padding, longest = int(numbers.pop("pad_to_multiple_of")), int(numbers.pop("llm_max_length"))
        return cls(towers[0], towers[1], size, numbers, padding, longest)


@dataclass(frozen=True)
class Settings:
    """What the published files do not say; `wvl_policy.json` in the checkpoint's folder.

    Attributes:
        convention: what its numbers mean, one of `actions.CONVENTIONS`.
        cameras: the images it was trained on, in that order.
        dataset: whose statistics to take, where there are several.
        chunk_size: actions a chunk: 8 of LIBERO's and DROID's, 5 of Bridge's.
        execute_steps: how many of them to execute before the next one. OFT's own evaluation executes all; 6 is a
            multiple of the 3 steps after which imagination has a new image.
        center_crop: whether to look at the middle 90 % of the area, as after a training with random crops of that size.
        base: folder of the model that `lora_adapter` was trained on, where its sum is not saved beside it.
    """

    convention: str
    cameras: tuple[str, ...]
    dataset: str = ""
    chunk_size: int = 8
    execute_steps: int = 6
    center_crop: bool = True
    base: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if self.convention not in CONVENTIONS:
            raise UnknownNameError("convention of OpenVLA's actions", self.convention, CONVENTIONS)
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise UnknownNameError("camera", camera, CAMERAS)
        if not self.cameras:
            raise ConfigError("OpenVLA's cameras are empty; name those it was trained on.")
        if not 1 <= self.execute_steps <= self.chunk_size:
            raise ConfigError(
                f"OpenVLA's execute_steps must be in 1 .. chunk_size {self.chunk_size}, but is {self.execute_steps}."
            )

    @property
    def slots(self) -> int:
        """Tokens of a chunk."""
        return self.chunk_size * ACTION_DIM

    @classmethod
    def from_table(cls, table: Mapping[str, Any], path: Path) -> Settings:
        """From what `wvl_policy.json` holds; `path` names it in errors.

        Raises:
            CheckpointError: a setting is missing, unknown or impossible.
        """
        unknown = table.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise CheckpointError(f"'{path}' has the unknown setting '{min(unknown)}'.")
        try:
            return cls(**table)
        except (TypeError, ConfigError, UnknownNameError) as error:
            raise CheckpointError(f"'{path}' does not describe a policy: {error}") from error
