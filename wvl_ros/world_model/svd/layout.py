"""`SVDWorldModel` from what others published: Ctrl-World's checkpoints, and Stable Video Diffusion with CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.models import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

from wvl_ros.errors import CheckpointError
from wvl_ros.world_model.published import Account, Weights, fit, prefixed, read_weights, settings_for
from wvl_ros.world_model.svd.model import SVDWorldModel

OURS = ("heads.", "tracking.")
# Stable Video Diffusion's image encoder lies in Ctrl-World's file, but its network never sees what it says.
# The position numbers are no weights: transformers before 4.31 saved them.
NOT_USED = ("image_encoder.", "text_encoder.text_model.embeddings.position_ids")
OF_THE_IMAGES = ("text_encoder.vision_model.", "text_encoder.visual_projection.", "text_encoder.logit_scale")


def from_ctrl_world(path: Path | str, **config: Any) -> tuple[SVDWorldModel, Account]:
    """A model from Ctrl-World's `.pt`, a plain state dict of `unet. vae. image_encoder. text_encoder. action_encoder.`

    Args:
        path: the file. config: of the model, other than the published settings.

    Raises:
        CheckpointError: it holds more than tensors, or a name or shape is not as published.
    """
    weights = read_weights(path)
    model = SVDWorldModel(**config)
    unused = NOT_USED if model.text_encoder is not None else (*NOT_USED, "text_encoder.")
    return model.eval(), fit(model, weights, path, fresh=OURS, left_out=unused)


def from_svd(folder: Path | str, clip: Path | str, **config: Any) -> tuple[SVDWorldModel, Account]:
    """A model to be trained, from the folders of Stable Video Diffusion (diffusers) and CLIP ViT-B/32 (transformers).

    Raises:
        CheckpointError: a folder or file is missing, or its weights do not fit its own configuration.
    """
    folder = Path(folder)
    parts: Weights = {}
    for name, part in (("unet", UNetSpatioTemporalConditionModel), ("vae", AutoencoderKLTemporalDecoder)):
        parts |= prefixed(f"{name}.", read_weights(folder / name))
        config[f"{name}_config"] = settings_for(part, folder / name) | dict(config.get(f"{name}_config") or {})
    parts |= prefixed("text_encoder.", read_weights(clip))
    model = SVDWorldModel(**config)
    model.tokenizer = load_tokenizer(Path(clip))
    fresh = (*OURS, "action_encoder.")
    return model.eval(), fit(model, parts, folder, fresh=fresh, left_out=(*NOT_USED, *OF_THE_IMAGES))


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from its files.

    Raises:
        CheckpointError: they are not there.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{folder}' does not hold CLIP's tokenizer; copy tokenizer.json, or vocab.json and merges.txt, there."
        ) from error
