"""Pictures of an episode for people: an MP4 with the three cameras side by side, and a contact sheet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wvl_ros.errors import EpisodeError, WvlError
from wvl_ros.sans.episode import Episode
from wvl_ros.worlds.droid import CAMERAS

Picture = NDArray[np.uint8]

MIN_HEIGHT = 192  # px of a camera's picture in the video
COLUMNS = 8
CAPTION = 44  # px
GAP = 4
VIDEO = "rollout.mp4"
SHEET = "contact_sheet.png"


@dataclass(frozen=True)
class Reference:
    """What an episode is compared with: the real pictures, from a step on, and a word for them."""

    episode: Episode
    start: int = 0
    label: str = "recorded"

    def images(self, step: int, like: Episode) -> dict[str, Picture]:
        """Pictures of the three cameras at a step, of the size that `like` has; black where the reference has ended."""
        own = like.images[CAMERAS[0]].shape[1:3]
        if self.start + step >= len(self.episode):
            return {camera: np.zeros((*own, 3), np.uint8) for camera in CAMERAS}
        observation = self.episode.observation(self.start + step)
        return {camera: _scale(observation[camera], own) for camera in CAMERAS}


def render(episode: Episode, folder: Path, reference: Reference | None = None, *, label: str = "") -> tuple[Path, Path]:
    """Writes `rollout.mp4` and `contact_sheet.png` into a folder, each whole or not at all.

    Args:
        episode: with all three cameras, of one size.
        folder: made when it is not there.
        reference: pictures to put above the episode's own.
        label: a word for the episode's own pictures; by default where it happened (`episode.source`).

    Returns:
        The video's path (H.264, 15 frames a second) and the contact sheet's.

    Raises:
        EpisodeError: a camera is missing or the sizes differ.
    """
    episode.observation(0)  # names a missing camera
    if len({episode.images[camera].shape[1:] for camera in CAMERAS}) > 1:
        raise EpisodeError("The cameras of this episode differ in size, so they cannot be rendered side by side.")
    label = label or episode.source.rpartition("/")[2] or "episode"
    folder.mkdir(parents=True, exist_ok=True)
    video, sheet = folder / VIDEO, folder / SHEET
    part = folder / f".{os.getpid()}.{VIDEO}"
    try:
        write_video(part, _frames(episode, reference, label), episode.fps)
        part.replace(video)
    finally:
        part.unlink(missing_ok=True)
    part = folder / f".{os.getpid()}.{SHEET}"
    try:
        contact_sheet(episode, reference, label).save(part, format="PNG")
        part.replace(sheet)
    finally:
        part.unlink(missing_ok=True)
    return video, sheet


def find_reference(path: Path | str, episode: Episode) -> Reference | None:
    """What an episode can be compared with: a second world in its bag, else the episode it started from; None if
    neither.

    A source that is gone by now is no error: the rollout is then rendered alone.
    """
    from wvl_ros.sans.bags.reader import last_episode, namespaces, read_bag
    from wvl_ros.sans.sources import load_source, split_source

    try:
        path = Path(path)
        bag = next((folder for folder in (path, path / "bag") if (folder / "metadata.yaml").is_file()), None)
        if bag is not None:
            for namespace in namespaces(bag):
                name = last_episode(bag, namespace)
                if name and name != episode.episode_id:
                    other = read_bag(bag, namespace=namespace, episode_id=name)
                    return Reference(other, label=other.source.rpartition("/")[2])
        source, start = split_source(str(episode.extra.get("started_from", "")))
        found = load_source(source)
    except WvlError:
        return None
    return Reference(found, start) if found is not None else None


def _frames(episode: Episode, reference: Reference | None, label: str) -> Iterator[Picture]:
    probabilities = episode.extra.get("success_probability")
    for step in range(len(episode)):
        rows = [_row(reference.images(step, episode), reference.label)] if reference else []
        rows.append(_row(episode.observation(step), label))
        reward = float(episode.reward[step - 1]) if step else 0.0
        texts = [f"step {step}/{len(episode) - 1}", f"reward {reward:g}"]
        if isinstance(probabilities, list) and len(probabilities) == len(episode):
            texts.append(f"P(success) {probabilities[step]:.2f}")
        if step == len(episode) - 1 and episode.outcome:
            texts.append(episode.outcome)
        picture = np.concatenate([_caption(rows[0].shape[1], "   ".join(texts), episode.instruction), *rows])
        yield np.pad(picture, [(0, n % 2) for n in picture.shape[:2]] + [(0, 0)])  # H.264 wants even sizes


def _row(images: dict[str, Picture], label: str) -> Picture:
    height = images[CAMERAS[0]].shape[0]
    factor = -(-MIN_HEIGHT // height)
    gap = np.zeros((height * factor, GAP, 3), np.uint8)
    parts: list[Picture] = []
    for camera in CAMERAS:
        parts += [images[camera].repeat(factor, axis=0).repeat(factor, axis=1), gap]
    picture = Image.fromarray(np.concatenate(parts[:-1], axis=1))
    _text(ImageDraw.Draw(picture), (6, 4), label, 14)
    return np.asarray(picture)


@lru_cache(maxsize=4)
def _caption(width: int, first: str, second: str) -> Picture:
    picture = Image.new("RGB", (width, CAPTION))
    draw = ImageDraw.Draw(picture)
    draw.text((6, 4), first, "white", font=_font(14))
    draw.text((6, 23), second, "white", font=_font(14))
    return np.asarray(picture)


def contact_sheet(episode: Episode, reference: Reference | None = None, label: str = "") -> Image.Image:
    """Eight moments from first to last; for each camera a row, the reference's above it.

    Raises:
        EpisodeError: a camera is missing.
    """
    steps = np.linspace(0, len(episode) - 1, min(COLUMNS, len(episode))).round().astype(int)
    columns = []
    for step in steps:
        own, other = episode.observation(int(step)), reference.images(int(step), episode) if reference else None
        cells = [images[camera] for camera in CAMERAS for images in ((other, own) if other else (own,))]
        columns.append(np.concatenate(cells))
    body = Image.fromarray(np.concatenate(columns, axis=1))
    sheet = Image.new("RGB", (body.width, body.height + CAPTION))
    sheet.paste(body, (0, CAPTION))
    draw = ImageDraw.Draw(sheet)
    draw.text((6, 4), f"{episode.instruction}   {episode.outcome}", "white", font=_font(14))
    cell_height, cell_width = episode.images[CAMERAS[0]].shape[1:3]
    for column, step in enumerate(steps):
        draw.text((column * cell_width + 6, 23), f"step {step}", "white", font=_font(14))
    labels = (reference.label, label) if reference else (label,)
    for row in range(len(CAMERAS) * len(labels)):
        _text(draw, (4, CAPTION + row * cell_height + 2), labels[row % len(labels)], 12)
    return sheet


def write_video(path: Path, frames: Iterable[Picture], fps: float) -> None:
    """An MP4 (H.264) of pictures (H, W, 3) of one size, both sides even."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int) -> None:
    draw.text(at, text, "white", font=_font(size), stroke_width=2, stroke_fill="black")


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _scale(image: Picture, size: tuple[int, int]) -> Picture:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))
