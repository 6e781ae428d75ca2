"""A Qwen2.5-VL or Qwen3-VL model from a local folder: a video and a question in, the logits of the answer out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from wvl_ros.errors import CheckpointError, ConfigError
from wvl_ros.rewards.vlm.clip import Clip
from wvl_ros.rewards.vlm.pixels import Patching
from wvl_ros.world_model.checksums import refuse_pickle
from wvl_ros.world_model.loading import read_config

Colours = tuple[float, float, float]
DTYPES = ("auto", "float32", "bfloat16", "float16")
_VIDEO, _START, _END = "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
_OF_VIDEO = 2  # in mm_token_type_ids; 0 is text


@dataclass(frozen=True)
class Family:
    """What differs between the generations of Qwen-VL.

    Attributes:
        model: name of the class in transformers. mean, std: of colours. system: its usual system message.
        timed: whether the time of each pair of frames is written into the text; else it is in the positions.
    """

    model: str
    mean: Colours
    std: Colours
    system: str
    timed: bool


FAMILIES = {
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        "You are a helpful assistant.",
        timed=False,
    ),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "", timed=True),
}


class QwenVL:
    """A model with its tokenizer.

    Args:
        model: of one of the `FAMILIES`. tokenizer: of the same folder.

    Raises:
        CheckpointError: the two do not fit together.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.family = FAMILIES[model.config.model_type]
        vision = model.config.vision_config
        self.patching = Patching(
            vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, self.family.mean, self.family.std
        )
        self._video = int(model.config.video_token_id)
        if tokenizer.convert_tokens_to_ids(_VIDEO) != self._video or tokenizer.convert_tokens_to_ids(_START) is None:
            raise CheckpointError(f"The tokenizer does not fit its model: '{_VIDEO}' is not token {self._video} there.")

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "auto", dtype: str = "auto") -> QwenVL:
        """Loads safetensors from a local folder; nothing is fetched, nothing in it is executed.

        Args:
            device: 'auto' takes a GPU where there is one.
            dtype: one of `DTYPES`; 'auto' takes bfloat16 on a GPU and float32 without.

        Raises:
            CheckpointError: the folder, a file in it or some weights are missing, damaged or of another model.
            ConfigError: no such device or dtype.
        """
        folder = Path(folder).expanduser()
        family = _family(folder)
        place = _place(device)
        precision = _precision(dtype, place)
        import transformers

        try:
            model, told = getattr(transformers, family.model).from_pretrained(
                str(folder),
                dtype=precision,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"The weights in '{folder}' cannot be loaded; copy the folder again ({_first_line(error)})."
            ) from error
        lacking = sorted(told["missing_keys"]) + sorted(str(key) for key in told.get("mismatched_keys", ()))
        if lacking:
            raise CheckpointError(
                f"'{folder}' lacks {len(lacking)} of its model's weights, '{lacking[0]}' among them; copy it again."
            )
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise CheckpointError(
                f"'{folder}' does not hold the model's tokenizer; copy tokenizer.json and tokenizer_config.json there "
                f"({_first_line(error)})."
            ) from error
        return cls(model.to(place).eval(), tokenizer)

    def save(self, folder: Path) -> None:
        """Writes weights, configuration and tokenizer into a folder."""
        self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    def inputs(
        self, clips: Sequence[Clip], questions: Sequence[str], min_pixels: int, max_pixels: int
    ) -> dict[str, Tensor]:
        """What the model's `forward` takes for B videos with a question each, on its device; padded on the left."""
        pixels, grids, rows = [], [], []
        for clip, question in zip(clips, questions, strict=True):
            patches, grid = self.patching.cut(clip.frames, min_pixels, max_pixels)
            pixels.append(patches)
            grids.append(grid)
            text = self.text(clip, question, grid)
            rows.append(torch.tensor(self.tokenizer.encode(text, add_special_tokens=False)))
        length = max(map(len, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(rows):
            ids[row, length - len(own) :] = own
            mask[row, length - len(own) :] = 1
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": _OF_VIDEO * ((ids == self._video) & (mask > 0)).int(),
            "pixel_values_videos": torch.cat(pixels),
            "video_grid_thw": torch.tensor(grids),
        }
        if not self.family.timed:
            intervals = [self.patching.together * clip.interval for clip in clips]
            given["second_per_grid_ts"] = torch.tensor(intervals)
        return {name: tensor.to(self.model.device) for name, tensor in given.items()}

    def text(self, clip: Clip, question: str, grid: tuple[int, int, int]) -> str:
        """The conversation up to the answer, with a placeholder for each token of the video."""
        t, h, w = grid
        tokens = h * w // self.patching.merge**2
        if self.family.timed:
            times = clip.seconds.tolist()
            times += times[-1:] * (-len(times) % self.patching.together)
            parts = [times[i : i + self.patching.together] for i in range(0, len(times), self.patching.together)]
            video = "".join(
                f"<{(part[0] + part[-1]) / 2:.1f} seconds>{_START}{_VIDEO * tokens}{_END}" for part in parts
            )
        else:
            video = f"{_START}{_VIDEO * (t * tokens)}{_END}"
        system = f"<|im_start|>system\n{self.family.system}<|im_end|>\n" if self.family.system else ""
        return f"{system}<|im_start|>user\n{video}{question}<|im_end|>\n<|im_start|>assistant\n"

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Of the answer's first token, float32 (B, V), from what `inputs` gave."""
        output = self.model(**inputs, logits_to_keep=1, use_cache=False)
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _family(folder: Path) -> Family:
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder '{folder}' with a vision-language model.")
    kind = read_config(folder).get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(
            f"'{folder}' holds a model of type '{kind}'; the judge 'vlm' knows: {', '.join(FAMILIES)}."
        )
    if not any(folder.glob("*.safetensors")):
        refuse_pickle(folder / "model.safetensors")
        raise CheckpointError(f"The weights (*.safetensors) are missing in '{folder}'; copy them there.")
    return FAMILIES[kind]


def _place(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown; torch built without it; no backend
        raise ConfigError(f"There is no device '{device}' here; use 'auto', 'cpu' or 'cuda'.") from error
    return place


def _precision(dtype: str, place: torch.device) -> torch.dtype:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, but is '{dtype}'.")
    if dtype == "auto":
        return torch.bfloat16 if place.type == "cuda" else torch.float32
    precision: torch.dtype = getattr(torch, dtype)
    return precision


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
