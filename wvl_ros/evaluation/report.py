"""What `wvl evaluate world-model` says: the flat figures a program reads, and a page for people."""

from __future__ import annotations

from typing import Any

from wvl_ros.evaluation.arm import PIXEL_HEIGHT
from wvl_ros.evaluation.images import HORIZONS
from wvl_ros.evaluation.outcome import KINDS, sentence, text
from wvl_ros.worlds.droid import CAMERAS


def headline(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures that a world model is compared by, each with the ends of its 95 % interval."""
    outcome, images = result["outcome"], result["images"]
    figures = {name: (images[name], images["intervals_95"][name]) for name in ("psnr", "ssim")}
    if "visual" in result:
        for name, of in (("visual_alignment", "imagined"), ("visual_judge_accuracy", "true")):
            figures[name] = (result["visual"][of]["accuracy"], result["visual"][of]["interval_95"])
    figures["reward_alignment"] = (outcome["accuracy"], outcome["interval_95"])
    figures["false_success"] = (outcome["false_success_near"], outcome["false_success_near_interval_95"])
    listening = result["listening"]
    figures["misnamed_success"] = (listening["misnamed"], listening["interval_95"])
    if "blind" in outcome:
        figures["blind_alignment"] = (outcome["blind"]["accuracy"], outcome["blind"]["interval_95"])
    if "following" in result:
        following = result["following"]
        figures["action_following"] = (following["own_nearer"], following["own_nearer_interval_95"])
    flat: dict[str, float | None] = {}
    for name, (value, (low, high)) in figures.items():
        flat |= {name: value, f"{name}_low": low, f"{name}_high": high}
    flat["reward_brier"] = result["calibration"]["frames"]["brier"]
    flat["reward_ece"] = result["calibration"]["frames"]["ece"]
    return flat | {name: result["perceptual"][name] for name in ("lpips", "fvd")}


def show(result: dict[str, Any]) -> None:
    """Prints the figures for people."""
    print(f"{result['episodes']} episodes of {result['data']}, imagined by {result['checkpoint']}")
    _show_images(result)
    _show_arm(result["arm"])
    _show_closings(result["closings"])
    for name, outcome in {"outcome": result["outcome"], **result["outcome_by_task"]}.items():
        print(f"{name:12s} {sentence(outcome)}")
        if "blind" in outcome:
            print(f"{'':12s} blind baseline: {sentence(outcome['blind'])}")
    if "visual" in result:
        print(f"videos       by a judge of true frames: {sentence(result['visual']['imagined'])}")
        print(f"{'':12s} the judge on the true videos: {sentence(result['visual']['true'])}")
    else:
        print("videos       visual alignment not computed: there is no judge (`wvl train visual-judge` makes it)")
    _show_listening(result["listening"])
    _show_matrix(result)
    _show_calibration(result["calibration"]["frames"])
    if "following" in result:
        _show_following(result["following"])
    if "review" in result:
        _show_review(result["review"])
    for name in ("sheet", "curves", "pictures"):
        if name in result:
            print(f"{name:12s} {result[name]}")


def _show_listening(of: dict[str, Any]) -> None:
    if of["episodes"]:
        low, high = of["interval_95"]
        print(
            f"listening    of {of['episodes']} successes {of['named']:.0%} are taken for one as they were told, and "
            f"{of['misnamed']:.0%} ({low:.0%} to {high:.0%}) when something else is named"
        )


def _show_images(result: dict[str, Any]) -> None:
    images, perceptual = result["images"], result["perceptual"]
    print(f"images       PSNR {text(images['psnr'])} dB, SSIM {text(images['ssim'], 3)} over whole rollouts")
    for camera in CAMERAS:
        of = images[camera]
        times = [seconds for seconds in HORIZONS if of[f"psnr_at_{seconds}s"] is not None]
        at = ", ".join(f"{text(of[f'psnr_at_{s}s'])} ({text(of[f'ssim_at_{s}s'], 2)})" for s in times)
        when = ", ".join(f"{seconds:g}" for seconds in times)
        print(f"  {camera:24s} PSNR {text(of['psnr'])}, SSIM {text(of['ssim'], 3)}; at {when} s: {at}")
    for name, option in (("lpips", "--lpips-weights"), ("fvd", "--fvd-weights")):
        value = perceptual[name]
        network = perceptual.get(f"{name}_network", {}).get("file")
        said = f"{value} by {network}" if value is not None else f"not computed ({option} gives its network)"
        print(f"  {name.upper():24s} {said}")


def _show_arm(arm: dict[str, Any]) -> None:
    mm, px, drawn = arm["tcp_mm"], arm["tcp_px"], arm["drawn_px"]
    print(
        f"arm          {text(mm['mean'])} mm from the true one (median {text(mm['median'])}, 95 % {text(mm['p95'])});"
    )
    print(
        f"{'':12s} {text(px['mean'])} px of {PIXEL_HEIGHT} (95 % {text(px['p95'])}), drawn {text(drawn['mean'])} px off"
    )


def _show_closings(closings: dict[str, Any]) -> None:
    names = {"on_nothing": "nothing_told_as_held", "on_something": "held_told_as_nothing"}
    said = [
        f"{closings[of]} times {of.replace('_', ' ')} ({text(closings[wrong], 2)} of them imagined the other way)"
        for of, wrong in names.items()
    ]
    print(f"gripper      it closes {', '.join(said)}")


def _show_matrix(result: dict[str, Any]) -> None:
    who = {"reward head": result["outcome"]["matrix"]}
    if "visual" in result:
        who["visual judge"] = result["visual"]["imagined"]["matrix"]
    if "blind" in result["outcome"]:
        who["blind baseline"] = result["outcome"]["blind"]["matrix"]
    print(f"{'truth':12s} said success / not, by {', '.join(who)}")
    for kind in KINDS:
        counts = [f"{matrix[kind]['said_success']:4d} /{matrix[kind]['said_not']:4d}" for matrix in who.values()]
        print(f"  {kind:12s} {'   '.join(counts)}")


def _show_calibration(of: dict[str, Any]) -> None:
    print(
        f"calibration  of the reward, frame by frame: Brier {text(of['brier'], 3)} (base rate alone "
        f"{text(of['brier_of_base_rate'], 3)}), expected calibration error {text(of['ece'], 3)}"
    )
    print("  " + ", ".join(f"said {row['said']:.2f} came {row['came']:.2f}" for row in of["table"]))


def _show_following(of: dict[str, Any]) -> None:
    low, high = of["own_nearer_interval_95"]
    random = of["random"]
    print(
        f"actions      {of['pairs']} pairs of episodes from one start: {text(of['own_nearer'], 3)} "
        f"[{text(low, 3)}, {text(high, 3)}] of the frames, {text(of['own_nearer_at_end'], 3)} of the last ones,"
    )
    print(
        f"{'':12s} are nearer to their own truth (PSNR {text(of['psnr_own'])}) than to the other's "
        f"({text(of['psnr_other'])});"
    )
    print(
        f"{'':12s} where one succeeds, the reward is higher for it in {text(of['ranked_right'], 3)} of "
        f"{of['pairs_with_one_success']} pairs"
    )
    print(
        f"{'':12s} random actions: PSNR {text(random['psnr'])} (the first frame kept: "
        f"{text(random['psnr_of_first_frame'])}), gripper {text(random['tcp_px']['mean'])} px off, drawn "
        f"{text(random['drawn_px']['mean'])} px off"
    )


def _show_review(of: dict[str, Any]) -> None:
    for side in ("imagined", "true"):
        low, high = of[side]["interval_95"]
        count, share = of[side]["looked_at"], text(of[side]["agree"], 3)
        print(f"review       of {count} {side} videos, person and judge agree on {share} [{low:.3f}, {high:.3f}]")
