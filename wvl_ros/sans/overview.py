"""A dataset at a glance: what it holds, in numbers and in one picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wvl_ros.errors import DatasetError
from wvl_ros.sans.dataset import Dataset, EpisodeRecord

UNLABELLED = "unlabelled"
COLOURS = {
    "success": (46, 160, 67),
    "near_success": (227, 160, 8),
    "failure": (207, 54, 54),
    "aborted": (140, 90, 180),
    UNLABELLED: (120, 120, 120),
}
MOMENTS = 5  # of the exterior view: first, three between, last
CELL = 120  # px, height of a cell
BORDER = 4
CAPTION = 20
FONT = 13


def summary(dataset: Dataset) -> dict[str, Any]:
    """What a dataset holds: counts, length, size on disk, who acted and judged, and the worst of its conversions.

    Sizes are in MB (10^6 bytes); files that are missing count as 0.
    """
    records = dataset.records
    frames = sum(record.length for record in records)
    tasks: dict[str, Counter[str]] = {}
    for record in records:
        tasks.setdefault(record.task, Counter())[record.outcome or UNLABELLED] += 1
    data, videos = (
        sum(path.stat().st_size for path in (dataset.root / part).rglob("*") if path.is_file()) / 1e6
        for part in ("data", "videos")
    )
    return {
        "dataset": str(dataset.root),
        "episodes": len(records),
        "steps": frames,
        "hours": round(frames / dataset.format.fps / 3600, 3),
        "fps": dataset.format.fps,
        "codec": dataset.format.codec,
        "cameras": {name: f"{width}x{height}" for name, (height, width) in dataset.format.cameras.items()},
        "size_mb": {"data": round(data, 2), "videos": round(videos, 2)},
        "tasks": {task: dict(sorted(counts.items())) for task, counts in sorted(tasks.items())},
        "outcomes": _counts(record.outcome or UNLABELLED for record in records),
        "outcome_sources": _counts(record.outcome_source or "nobody" for record in records),
        "sources": _counts(record.source or "unknown" for record in records),
        "iterations": _counts(str(record.iteration) for record in records),
        "policies": _counts(record.policy for record in records if record.policy),
        "world_models": _counts(record.world_model for record in records if record.world_model),
        "unlabelled": sum(not record.outcome for record in records),
        "conversion": _conversion(records),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _conversion(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """The worst skew and the sum of the drops of those episodes whose reports name them."""
    skews = {record.index: record.report.get("skew_max_ms") for record in records}
    known = {index: float(skew) for index, skew in skews.items() if isinstance(skew, int | float)}
    drops = [drop for record in records if isinstance(drop := record.report.get("drops"), int)]
    if not known and not drops:
        return {}
    worst = max(known, key=lambda index: known[index], default=None)
    return {
        "episodes": len(known),
        "worst_skew_ms": known[worst] if worst is not None else None,
        "worst_episode": worst,
        "drops": sum(drops),
        "episodes_with_drops": sum(drop > 0 for drop in drops),
    }


def sample(records: Sequence[EpisodeRecord], count: int) -> list[EpisodeRecord]:
    """At most `count` episodes, as evenly over the outcomes as they go, and within one evenly from first to last."""
    groups: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        groups.setdefault(record.outcome, []).append(record)
    share = dict.fromkeys(groups, 0)
    for _ in range(min(count, len(records))):
        least = min((name for name in groups if share[name] < len(groups[name])), key=lambda name: share[name])
        share[least] += 1
    chosen = [
        group[i]
        for name, group in groups.items()
        for i in np.linspace(0, len(group) - 1, share[name]).round().astype(int)
    ]
    return sorted(chosen, key=lambda record: record.index)


def contact_sheet(dataset: Dataset, rows: int = 16) -> Image.Image:
    """A row an episode: five moments of an exterior view, the last one of the wrist, framed in the outcome's colour.

    Raises:
        DatasetError: no cameras or no episodes, or a video is missing or damaged.
    """
    cameras = list(dataset.format.cameras)
    if not cameras or not len(dataset):
        raise DatasetError(f"There are no pictures in '{dataset.root}' yet.")
    outside = next((camera for camera in cameras if "exterior" in camera), cameras[0])
    wrist = next((camera for camera in cameras if "wrist" in camera), cameras[-1])
    strips = [_strip(dataset, record, outside, wrist) for record in sample(dataset.records, rows)]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _strip(dataset: Dataset, record: EpisodeRecord, outside: str, wrist: str) -> Image.Image:
    count = (record.length - 1) // record.image_stride + 1
    moments = [int(i) for i in np.linspace(0, count - 1, MOMENTS).round()]
    cells = [_cell(picture) for picture in _pictures(dataset, record.index, outside, moments)]
    cells += [_cell(picture) for picture in _pictures(dataset, record.index, wrist, [count - 1])]
    width = sum(cell.width for cell in cells) + 2 * BORDER + 2 * (len(cells) - 1)
    strip = Image.new("RGB", (width, CELL + 2 * BORDER + CAPTION + 4), "white")
    draw = ImageDraw.Draw(strip)
    outcome = record.outcome or UNLABELLED
    draw.rectangle((0, CAPTION, width - 1, CAPTION + CELL + 2 * BORDER - 1), fill=COLOURS[outcome])
    font = ImageFont.load_default(FONT)
    judge = f" ({record.outcome_source})" if record.outcome_source else ""
    head = f"#{record.index}  {outcome}{judge}"
    draw.text((BORDER, 2), head, COLOURS[outcome], font=font, stroke_width=0.4, stroke_fill=COLOURS[outcome])
    text = f"{record.task}: {record.instruction}" if record.instruction else record.task
    facts = f"{record.source}  iteration {record.iteration}  {record.length} steps  {text}"
    draw.text((BORDER + draw.textlength(head, font=font) + 14, 2), facts, "black", font=font)
    left = BORDER
    for cell in cells:
        strip.paste(cell, (left, CAPTION + BORDER))
        left += cell.width + 2
    return strip


def _pictures(dataset: Dataset, index: int, camera: str, moments: list[int]) -> list[NDArray[np.uint8]]:
    found = {i: picture for i, picture in enumerate(dataset.images(index, camera)) if i in set(moments)}
    return [found[i] for i in moments]


def _cell(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    return image.resize((max(1, round(image.width * CELL / image.height)), CELL), Image.Resampling.LANCZOS)
