"""A person looks at what the judge of videos judged: pictures to look at, a table to fill in, and the agreement."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wvl_ros.errors import ConfigError
from wvl_ros.evaluation.imagined import ImaginedEpisode
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import patches

TABLE = "review.csv"
COUNT = 50
SAID = ("success", "not")
_COLUMNS = ("picture", "task", "instruction", "truth", "judge_imagined", "judge_true", "me_imagined", "me_true")
_LAST = 3  # frames
_SIDE = 192  # px of an enlarged view
_BAR = 26


def write_review(
    folder: Path,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    imagined: list[ImaginedEpisode],
    patch: int,
    says: dict[str, NDArray[np.bool_]],
) -> int:
    """Writes up to 50 pictures and `review.csv`; a table that is there already is kept, with what was noted in it.

    Each picture has a column of the first true frame, then the last three true ones and the last three imagined ones;
    a row a camera. In the table, `me_imagined` and `me_true` are to be filled in: 'success', 'not', or nothing where
    one cannot tell.

    Args:
        says: the judge's verdict 'imagined' and 'true', (N,) each.

    Returns:
        How many pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / TABLE
    if table.exists():
        raise ConfigError(f"'{table}' exists already; choose another folder, or move the one you filled in.")
    usable = [row for row in range(len(episodes)) if len(imagined[row].frames)]
    picked = [usable[i] for i in np.linspace(0, len(usable) - 1, min(COUNT, len(usable))).round().astype(int)]
    lines = []
    for number, row in enumerate(picked):
        episode = int(episodes[row])
        name = f"{number:02d}.png"
        verdict = {side: SAID[0] if says[side][row] else SAID[1] for side in says}
        start, count = int(cache.frame_start[episode]), int(cache.frame_count[episode])
        true = patches.from_patches(cache.frames[start : start + count], patch)
        mine = patches.from_patches(imagined[row].frames[-_LAST:], patch)
        texts = [cache.instructions[episode], "first", f"true: {verdict['true']}", f"imagined: {verdict['imagined']}"]
        _picture(np.concatenate([true[:1], true[1:][-_LAST:], mine]), len(true[1:][-_LAST:]), texts).save(folder / name)
        facts = (cache.tasks[episode], cache.instructions[episode], cache.outcomes[episode])
        lines.append((name, *facts, verdict["imagined"], verdict["true"], "", ""))
    part = folder / f".{TABLE}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *lines])
    part.replace(table)
    return len(picked)


def agreement(path: Path) -> dict[str, Any]:
    """How often a person, who has filled in a table of `write_review`, and the judge say the same, with Wilson's 95 %.

    Returns:
        For 'imagined' and 'true': `looked_at`, `agree`, `interval_95`, and `visual_alignment_by_person` (share of the
        imagined ones that the person says end as the true ones did) with its interval.

    Raises:
        ConfigError: no such table, a column is missing, or a word in it is unknown.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"The table '{path}' cannot be read: {error}") from error
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ConfigError(f"'{path}' has no column '{missing[0]}'; give the {TABLE} that --review wrote, filled in.")
    result: dict[str, Any] = {}
    for side in ("imagined", "true"):
        noted = [row for row in rows if row[f"me_{side}"].strip()]
        for row in noted:
            if row[f"me_{side}"].strip().lower() not in SAID:
                raise ConfigError(
                    f"'{path}' says '{row[f'me_{side}']}' of {row['picture']}; write 'success', 'not', or nothing."
                )
        same = sum(row[f"me_{side}"].strip().lower() == row[f"judge_{side}"] for row in noted)
        result[side] = {"looked_at": len(noted)} | _share(same, len(noted), "agree")
        if side == "imagined":
            right = sum(
                (row["me_imagined"].strip().lower() == "success") == (row["truth"] == "success") for row in noted
            )
            result["visual_alignment_by_person"] = _share(right, len(noted), "share")
    return result


def _share(count: int, of: int, name: str) -> dict[str, Any]:
    return {
        name: round(count / of, 4) if of else None,
        "interval_95": [round(x, 4) for x in wilson_interval(count, of)],
    }


def _picture(frames: NDArray[np.uint8], true: int, texts: list[str]) -> Image.Image:
    """Frames (N, V, S, S, 3) as columns; texts: the title, then of the first, the true and the imagined columns."""
    columns, views = frames.shape[:2]
    gap = 8
    sheet = Image.new("RGB", (columns * _SIDE + 2 * gap, views * _SIDE + 2 * _BAR), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    draw.text((6, 4), texts[0], "black", font)
    starts = (0, 1, 1 + true)
    for column in range(columns):
        group = sum(column >= start for start in starts) - 1
        left = column * _SIDE + group * gap
        if column in starts:
            draw.text((left + 6, _BAR + 4), texts[1 + group], "black", font)
        for view in range(views):
            image = Image.fromarray(frames[column, view]).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            sheet.paste(image, (left, 2 * _BAR + view * _SIDE))
    return sheet
