"""Where weights are: a shipped name ('small') or a folder of the user."""

from __future__ import annotations

from pathlib import Path

from wvl_ros.errors import CheckpointError

WEIGHTS = Path(__file__).parent / "weights"
KINDS = ("world_model", "policy")


def find(kind: str, name: str | Path) -> Path:
    """The folder of a checkpoint: `config.json` and weights as safetensors.

    Args:
        kind: 'world_model' or 'policy'.
        name: a shipped name, such as 'small', or a path to a folder.

    Raises:
        CheckpointError: there is no such folder, or it lacks its configuration or its weights.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {KINDS}, not {kind!r}")
    words = kind.replace("_", " ")
    shipped = WEIGHTS / f"{kind}_{name}"
    folder = shipped if shipped.is_dir() else Path(name).expanduser()
    if not folder.is_dir():
        known = (
            ", ".join(sorted(p.name.removeprefix(f"{kind}_") for p in WEIGHTS.glob(f"{kind}_*"))) or "none is shipped"
        )
        raise CheckpointError(f"There is no {words} checkpoint '{name}': give a folder or a shipped name ({known}).")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"'{folder}' is not a checkpoint: config.json is missing.")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"The weights (*.safetensors) are missing in '{folder}'; copy them there or train again.")
    return folder
