"""Which checkpoint of a run is kept: the one whose own rollouts of validation episodes end as they truly did."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wvl_ros.evaluation.blind import BlindBaseline
from wvl_ros.evaluation.imagined import ImaginedEpisode, write_sheet
from wvl_ros.evaluation.outcome import choose_threshold, outcome_measures
from wvl_ros.evaluation.world_model import evaluate
from wvl_ros.sans.render import write_video
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.world_model import patches
from wvl_ros.world_model.model import WorldModel

VIDEOS = 6
_FPS, _HEIGHT, _CAPTION = 5.0, 192, 18  # frames a second; of a camera's picture and of the text, in pixels


@dataclass(frozen=True)
class Verdict:
    """What a validation found after update `step`: share of `episodes` whose outcome the reward head told, with the
    threshold chosen on them, and PSNR in dB.
    """

    step: int
    accuracy: float
    psnr: float
    episodes: int

    @property
    def error(self) -> float:
        """The standard error of `accuracy`."""
        # Of few episodes all may be right; that does not make the share certain.
        share = (self.accuracy * self.episodes + 1) / (self.episodes + 2)
        return float(np.sqrt(share * (1 - share) / max(1, self.episodes)))

    def facts(self) -> dict[str, Any]:
        """For `Verdict(**facts)`."""
        return asdict(self)


def best(verdicts: Sequence[Verdict]) -> int:
    """Number of the checkpoint that is kept: of the highest accuracy, but of those within one standard error of it the
    one with the better PSNR. Decided one after another, as a run does that keeps only one.
    """
    kept = top = 0
    for i, verdict in enumerate(verdicts):
        if verdict.accuracy > verdicts[top].accuracy:
            top = i
        floor = verdicts[top].accuracy - verdicts[top].error
        if verdict.accuracy >= floor and (verdict.psnr > verdicts[kept].psnr or verdicts[kept].accuracy < floor):
            kept = i
    return kept


def exhausted(verdicts: Sequence[Verdict], patience: int) -> bool:
    """Whether the last `patience` validations brought no gain (0: never)."""
    return bool(verdicts) and 0 < patience <= len(verdicts) - 1 - best(verdicts)


def validate(
    model: WorldModel, held: FrameCache, blind: BlindBaseline | None, count: int, step: int
) -> tuple[Verdict, dict[str, Any], NDArray[np.int64], list[ImaginedEpisode]]:
    """Own rollouts of so many validation episodes; puts the threshold chosen on them into the model's configuration.

    Returns:
        The verdict, all figures, the numbers of the episodes and the rollouts.
    """
    episodes = np.linspace(0, len(held) - 1, min(count, len(held))).round().astype(int)
    figures, imagined = evaluate(model, held, episodes, blind=blind)
    chances, outcomes = [own.success_probability for own in imagined], [held.outcomes[i] for i in episodes]
    told = [i for i, outcome in enumerate(outcomes) if outcome in ("success", "near_success", "failure")]
    threshold, frames = choose_threshold([chances[i] for i in told], [outcomes[i] for i in told])
    model.register_to_config(success_threshold=threshold, success_frames=frames)
    chosen = outcome_measures(chances, outcomes, threshold, frames)
    blind_figures = figures["outcome"].get("blind")
    figures["outcome"] = chosen | ({"blind": blind_figures} if blind_figures else {})
    figures["chosen"] = {"success_threshold": threshold, "success_frames": frames}
    verdict = Verdict(step, chosen["accuracy"] or 0.0, figures["images"]["psnr"] or 0.0, chosen["episodes"])
    return verdict, figures, episodes, imagined


def draw(
    folder: Path, name: str, held: FrameCache, episodes: NDArray[np.int64], imagined: list[ImaginedEpisode], patch: int
) -> Path:
    """Writes `NAME.png`, some episodes over time, and a video of each in the folder NAME; returns the former."""
    picked = np.linspace(0, len(episodes) - 1, min(VIDEOS, len(episodes))).round().astype(int)
    sheet = folder / f"{name}.png"
    write_sheet(sheet, held, episodes[picked], [imagined[i] for i in picked], patch)
    for i in picked:
        if len(imagined[i].frames):
            kind = held.outcomes[episodes[i]] or "unknown"
            path = folder / name / f"{int(episodes[i]):05d}_{held.tasks[episodes[i]] or 'episode'}_{kind}.mp4"
            _video(path, held, int(episodes[i]), imagined[i], patch)
    return sheet


def write_comparison(
    path: Path,
    true: NDArray[np.uint8],
    mine: NDArray[np.uint8],
    rewards: NDArray[np.float32],
    chances: NDArray[np.float64],
    fps: float = _FPS,
) -> None:
    """An MP4 of T frames, the three cameras side by side: above as it was, below as imagined, and what the reward head
    says of it.

    Args:
        true, mine: uint8 (T, 3, H, W, 3). rewards, chances: (T,), true rewards and imagined probabilities of success.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = max(1, _HEIGHT // true.shape[2])

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for t in range(len(true)):
            body = np.concatenate([np.concatenate(list(views[t]), axis=1) for views in (true, mine)])
            body = body.repeat(scale, axis=0).repeat(scale, axis=1)
            picture = Image.new("RGB", (body.shape[1], body.shape[0] + _CAPTION))
            picture.paste(Image.fromarray(body), (0, _CAPTION))
            text = f"{(t + 1) / fps:.1f} s   above true, reward {rewards[t]:.0f}"
            text += f"   below imagined, P(success) {chances[t]:.2f}"
            ImageDraw.Draw(picture).text((4, 3), text, "white")
            pixels = np.asarray(picture)
            yield np.pad(pixels, [(0, size % 2) for size in pixels.shape[:2]] + [(0, 0)])

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_video(part, pictures(), fps)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _video(path: Path, held: FrameCache, episode: int, own: ImaginedEpisode, patch: int) -> None:
    start, n = int(held.frame_start[episode]), len(own.frames)
    rows = int(held.step_start[episode]) + held.actions_per_frame * np.arange(1, n + 1)
    true = patches.from_patches(held.frames[start + 1 : start + 1 + n], patch)
    mine = patches.from_patches(own.frames, patch)
    write_comparison(path, true, mine, held.rewards[rows].numpy(), own.success_probability)
