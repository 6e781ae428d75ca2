"""`wvl evaluate judge`: precision and recall of a judge on episodes whose outcome is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wvl_ros.errors import ConfigError
from wvl_ros.rewards.quality import Quality, measure, require_useful
from wvl_ros.rewards.registry import JUDGES, make_judge
from wvl_ros.rewards.truth import is_imagined, is_true
from wvl_ros.sans.episodes import list_episodes
from wvl_ros.worlds.droid import CAMERAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl evaluate judge`."""
    parser.add_argument("--judge", choices=JUDGES, required=True, help="who says success")
    parser.add_argument(
        "--checkpoint", default="", help="reward_head: a world model (default: small); vlm: folder of a Qwen-VL model"
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="held-out episodes with a known outcome, best real ones"
    )
    parser.add_argument("--threshold", type=float, help="success is a probability above it (default: the judge's own)")
    parser.add_argument(
        "--camera", nargs="+", choices=CAMERAS, help="vlm: what it sees, side by side (default: exterior_image_1_left)"
    )
    parser.add_argument("--device", help="vlm: 'auto' (default), 'cpu' or 'cuda'")
    parser.add_argument("--dtype", help="vlm: 'auto' (default), float32, bfloat16 or float16")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Asks the judge about every episode whose outcome is known.

    Returns:
        See `Quality.to_dict`; `imagined` and `left_out` count episodes, `useless` is why the judge tells nothing ('' if
        it does), `answers` how a vlm answered.
    """
    entries = [entry for path in args.data for entry in list_episodes(path)]
    known = [entry for entry in entries if is_true(entry)]
    if not known:
        raise ConfigError(
            f"None of the {len(entries)} episodes has a known outcome to measure the judge against; label some with "
            "`wvl label`."
        )
    given = {"cameras": args.camera, "device": args.device, "dtype": args.dtype}
    settings = {name: value for name, value in given.items() if value is not None}
    judge = make_judge(args.judge, args.checkpoint, args.threshold, **settings)
    quality = measure(judge, (entry.load() for entry in tqdm(known, desc="judging", unit="episode", disable=None)))
    useless = ""
    try:
        require_useful(quality)
    except ConfigError as error:
        useless = str(error)
    result = quality.to_dict() | {
        "imagined": sum(map(is_imagined, known)),
        "left_out": len(entries) - len(known),
        "useless": useless,
    }
    report = getattr(judge, "report", None)  # a vlm's
    return result if report is None else result | {"answers": report()}


def show(result: dict[str, Any]) -> None:
    """Prints the confusion matrix and the rates."""
    quality = Quality.from_dict(result)
    imagined = f", {result['imagined']} of them imagined" if result["imagined"] else ""
    print(f"Judge '{quality.judge}', success above {quality.threshold:g}: {quality.episodes} episodes{imagined}")
    print(f"{'':<18}{'says success':>14}{'says not':>14}")
    print(f"{'true successes':<18}{quality.tp:>14}{quality.fn:>14}")
    print(f"{'true failures':<18}{quality.fp:>14}{quality.tn:>14}")
    rates = {
        "precision": quality.precision,
        "recall": quality.recall,
        "failures taken for a success": quality.false_success,
    }
    for name, rate in rates.items():
        print(f"{name:<30}{rate}")
    print("In parentheses: 95 % intervals (Wilson).")
    if result["left_out"]:
        print(f"{result['left_out']} episodes without a known outcome were left out.")
    if "answers" in result:
        answers = result["answers"]
        print(
            f"It abstained from {answers['abstained']} of {answers['asked']}; yes and no together had a probability of "
            f"{answers['mean_mass']:.2f} on average."
        )
    if result["useless"]:
        print(f"Of no use: {result['useless']}")
