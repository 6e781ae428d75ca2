"""What a vision-language judge is shown and asked; kept in `judge.json` beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from wvl_ros.errors import ConfigError, UnknownNameError
from wvl_ros.training.checkpointing import read_json, write_json
from wvl_ros.training.settings import require
from wvl_ros.worlds.droid import CAMERAS

FILE = "judge.json"
QUESTION = (
    "The video shows a robot arm at work, from its first to its last moment. Its instruction was: "
    '"{instruction}". Is the instruction completed at the end? Answer with yes or no.'
)


@dataclass(frozen=True)
class VlmSettings:
    """Settings of a judge.

    Attributes:
        cameras: what it sees; several are put side by side in one picture.
        frames: of the video, evenly spread over the episode, the first and the last among them; a shorter episode is
            shown whole.
        question: what it is asked; `{instruction}` stands for the episode's.
        threshold: success is a probability above it (VLAW's alpha).
        least_mass: it abstains where yes and no together have less probability than this: it did not answer the
            question, and its probability of success counts as 0.
        min_pixels, max_pixels: of a frame as the model sees it; frames are scaled into these bounds.
        batch: episodes at a time.
    """

    cameras: tuple[str, ...] = ("exterior_image_1_left",)
    frames: int = 16
    question: str = QUESTION
    threshold: float = 0.8
    least_mass: float = 0.1
    min_pixels: int = 100_352
    max_pixels: int = 262_144
    batch: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))  # JSON knows lists only
        of = "The judge's"
        require(self, ("frames", "batch", "min_pixels"), lambda n: n >= 1, "at least 1", of)
        require(self, ("threshold", "least_mass"), lambda x: 0 <= x < 1, "in 0..1, below 1", of)
        require(self, ("max_pixels",), lambda n: n >= self.min_pixels, "at least min_pixels", of)
        require(self, ("cameras",), bool, "one camera or more", of)
        require(self, ("question",), lambda text: "{instruction}" in text, "a text with {instruction} in it", of)
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise UnknownNameError("camera", camera, CAMERAS)

    def changed(self, **values: Any) -> VlmSettings:
        """The same with other values.

        Raises:
            ConfigError: there is no such setting, or it cannot have that value.
        """
        unknown = values.keys() - {field.name for field in fields(self)}
        if unknown:
            raise ConfigError(f"The judge 'vlm' has no setting '{min(unknown)}'.")
        try:
            return replace(self, **values)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"A setting of the judge 'vlm' is of the wrong type: {error}.") from error

    def asked(self, instruction: str) -> str:
        """The question about an instruction; tokens of the model's own in it are made plain text."""
        return self.question.replace("{instruction}", instruction.strip().replace("<|", "< |"))

    @classmethod
    def read(cls, folder: Path) -> VlmSettings:
        """Those beside a model; the defaults where there are none.

        Raises:
            CheckpointError: the file is damaged.
            ConfigError: an unknown or impossible setting.
        """
        values = read_json(folder / FILE)
        if values is None:
            return cls()
        if not isinstance(values, dict):
            raise ConfigError(f"'{folder / FILE}' should be a table of settings.")
        return cls().changed(**values)

    def write(self, folder: Path) -> None:
        """Puts them beside a model."""
        write_json(folder / FILE, asdict(self))
