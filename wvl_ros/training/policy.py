"""`wvl train policy`: the small VLA by behaviour cloning, by GRPO in imagination, or by VLAW's update."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError, EpisodeError, UnknownNameError
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training.arena import ImaginedArena
from wvl_ros.training.demonstrations import collect
from wvl_ros.training.grpo import GRPOSettings
from wvl_ros.training.grpo_trainer import Check, GRPOTrainer
from wvl_ros.training.practice import require_whole_calls
from wvl_ros.training.processes import Processes, let_one_speak, started
from wvl_ros.training.samples import Samples, build_samples, read_episodes
from wvl_ros.training.settings import read_settings
from wvl_ros.training.supervised import SupervisedTrainer, TrainConfig
from wvl_ros.training.vlaw import SOURCES, VLAWSettings

if TYPE_CHECKING:
    from wvl_ros.rewards.interface import Judge
    from wvl_ros.sans.episode import Episode
    from wvl_ros.world_model.imagination import Imagination

METHODS = ("sft", "grpo", "vlaw")
CHECK_SEED = 930_000  # of the tabletop: checks of a policy while it practises
_TRUSTED = 200  # real rollouts at most on which a judge is measured
_BELONGS = {
    "minutes": ("sft",), "steps": ("sft", "vlaw"), "demonstrations": ("sft",), "updates": ("grpo",),
    "world_model": ("grpo", "vlaw"), "judge": ("vlaw",), "judge_checkpoint": ("vlaw",), "validation": ("vlaw",),
    "rollouts": ("vlaw",), "starts": ("vlaw",), "learn_from": ("vlaw",), "world": ("grpo",),
    "denoising_steps": ("grpo", "vlaw"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train policy`."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="sft",
        help="sft: supervised, on demonstrations (default); grpo: by practice in the world model; vlaw: supervised, on "
        "real successes and those imagined rollouts that a judge accepts",
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="SANS datasets or folders of episode files")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the new checkpoint; a stopped training goes on there"
    )
    parser.add_argument("--init", help="checkpoint to start from: a shipped name or a folder (default: fresh weights)")
    parser.add_argument(
        "--config", type=Path, help="YAML of training settings (config/policy_small.yaml, policy_grpo.yaml, ..._vlaw)"
    )
    parser.add_argument("--minutes", type=float, help="sft: training time (default: 5)")
    parser.add_argument("--steps", type=int, help="sft, vlaw: number of steps, for sft instead of or besides --minutes")
    parser.add_argument(
        "--demonstrations", type=int, help="sft: first record so many in the tabletop into the first --data"
    )
    parser.add_argument(
        "--tasks", nargs="+", help="sft: of --demonstrations (default: all four); grpo, vlaw: starts only from these"
    )
    parser.add_argument("--world-model", help="grpo, vlaw: a shipped name or a folder (default: small)")
    parser.add_argument(
        "--world",
        choices=("imagined", "tabletop"),
        help="grpo: practise in the world model (default), or in the tabletop itself: what a perfect one would give",
    )
    parser.add_argument("--denoising-steps", type=int, help="grpo, vlaw: of an imagined frame (default: the model's)")
    parser.add_argument("--updates", type=int, help="grpo: updates of the policy (default: the configuration's)")
    parser.add_argument("--rollouts", type=int, help="vlaw: imagined rollouts of each task (default: 500)")
    parser.add_argument(
        "--starts",
        type=Path,
        nargs="+",
        help="vlaw: episodes whose first observations imagined rollouts start from (default: those in --data)",
    )
    parser.add_argument("--judge", help="vlaw: who accepts imagined rollouts (default: reward_head)")
    parser.add_argument(
        "--judge-checkpoint", help="vlaw: of the judge (default: reward_head and visual take the world model)"
    )
    parser.add_argument(
        "--validation", type=Path, help="vlaw: real rollouts to measure the judge on (default: those of --starts)"
    )
    parser.add_argument(
        "--learn-from", choices=SOURCES, help="vlaw: both (default), real (filtered behaviour cloning) or synthetic"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes in the tabletop")
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: sft 1, small steps gain nothing from more; else torch's)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains a policy and writes its checkpoint; gives the folder and the last figures."""
    if started() > 1 and args.method == "sft":
        raise ConfigError("--method sft runs in one process: start it without torchrun.")
    let_one_speak()
    for name, methods in _BELONGS.items():
        if getattr(args, name) is not None and args.method not in methods:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} belongs to --method {' or '.join(methods)}, not to {args.method}.")
    for name in ("minutes", "steps", "updates", "rollouts"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ConfigError(f"--{name} must be positive, but is {getattr(args, name)}.")
    if args.method == "sft":
        return _clone(args)
    processes = Processes.join()
    try:
        return {"grpo": _grpo, "vlaw": _vlaw}[args.method](args, processes)
    finally:
        processes.leave()


def show(result: dict[str, Any]) -> None:
    """Prints the result for people."""
    if result["method"] == "grpo":
        world = result["world"]
        print(f"{result['updates']} updates after {result['rollouts']} {world} rollouts; {result['reason']}.")
        if f"{world}_success" in result:
            print(f"Success of these in the last update: {result[f'{world}_success']:.0%}")
        for check in result["checks"]:
            print(f"In the real world after update {check['update']}: {check['success']:.0%} of {check['episodes']}")
    elif result["method"] == "vlaw":
        for task, (kept, count) in result["accepted"].items():
            print(f"{task}: the judge accepted {kept} of {count} imagined rollouts")
        print(f"Learned {result['steps']} steps from {result['real_episodes']} real episodes and those.")
        print("Time: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["seconds"].items()))
    else:
        print(f"Trained {result['steps']} steps in {result['minutes']} min on {result['decisions']} decisions.")
        print("Losses: " + ", ".join(f"{name} {value:.3f}" for name, value in result["losses"].items()))
    print(f"The checkpoint is in {result['checkpoint']}")


def _clone(args: argparse.Namespace) -> dict[str, Any]:
    config = TrainConfig.from_yaml(args.config) if args.config else TrainConfig()
    minutes = 5.0 if args.minutes is None and args.steps is None else args.minutes
    torch.set_num_threads(args.threads or 1)
    tasks = args.tasks or ["pick_place", "push", "stack", "sweep"]
    recorded = collect(args.data[0], tasks, args.demonstrations or 0, args.workers)
    policy, samples = _prepare(args.init, config, args.data)
    trainer = SupervisedTrainer(policy, samples, config, args.out)
    losses = trainer.fit(minutes, args.steps)
    policy.save_pretrained(args.out)
    return {
        "method": "sft",
        "checkpoint": str(args.out),
        "steps": trainer.step,
        "minutes": round(trainer.elapsed / 60, 2),
        "decisions": len(samples),
        "demonstrations_recorded": recorded,
        "parameters": sum(p.numel() for p in policy.network.parameters()),
        "losses": losses,
    }


def _prepare(init: str | None, config: TrainConfig, data: Sequence[Path]) -> tuple[SmallPolicy, Samples]:
    if init is not None:
        policy = SmallPolicy.from_pretrained(find("policy", init))
        return policy, build_samples(read_episodes(data), policy.config)
    samples = build_samples(read_episodes(data), config.policy)
    vocabulary = WordTokenizer.from_texts(samples.instructions).vocabulary
    torch.manual_seed(config.seed)
    return SmallPolicy(replace(config.policy, vocabulary=vocabulary)), samples


def _grpo(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    settings = read_settings(GRPOSettings, args.config) if args.config else GRPOSettings()
    if args.updates is not None:
        settings = replace(settings, updates=args.updates)
    policy = _first(args)
    if policy.config.head != "gaussian":
        raise ConfigError(
            f"'{args.init}' has a {policy.config.head} head, which gives no probability of an action; GRPO needs a "
            "policy with the gaussian head (setting `head` of `wvl train policy --method sft`)."
        )
    check = _tabletop_check(settings.check_episodes, args.workers)
    facts = {"method": "grpo", "checkpoint": str(args.out), "world": args.world or "imagined"}
    if args.world == "tabletop":
        from wvl_ros.training.tabletop_arena import TabletopArena

        for option in ("world_model", "denoising_steps"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise ConfigError(f"--world tabletop practises without a world model: leave --{name} out.")
        entries = _entries(args.data, "tabletop", args.tasks)
        with closing(TabletopArena(args.workers)) as tabletop:
            return facts | GRPOTrainer(policy, tabletop, entries, settings, args.out, check, processes).fit()
    imagination, rig = _imagination(args, policy)
    entries = _entries(args.data, rig, args.tasks)
    arena = ImaginedArena(imagination, rig, _second_judge(args.world_model or "small"))
    return facts | GRPOTrainer(policy, arena, entries, settings, args.out, check, processes).fit()


def _vlaw(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    from wvl_ros.training.vlaw_run import VLAW

    settings = read_settings(VLAWSettings, args.config, update=TrainConfig) if args.config else VLAWSettings()
    given = {name: getattr(args, name) for name in ("steps", "rollouts", "learn_from")}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    policy = _first(args)
    imagination, rig = _imagination(args, policy)
    facts: dict[str, Any] = {"method": "vlaw", "checkpoint": str(args.out), "learn_from": settings.learn_from}
    entries = _entries(args.starts or args.data, rig, args.tasks)
    judge = _judge(args)
    steps = f" in {args.denoising_steps} steps" if args.denoising_steps else ""
    names = (args.init, f"{args.world_model or 'small'}{steps}")
    run = VLAW(policy, imagination, rig, judge, entries, settings, args.out, names, processes)
    rollouts = []
    if settings.learn_from != "real":
        validation = _entries([args.validation], rig, args.tasks) if args.validation else entries
        trusted = _trust(judge, imagination, rig, validation) if processes.main else {}
        facts["judge"] = processes.copy_object(trusted)
        rollouts = run.imagine()
    tasks = sorted({rollout.task for rollout in rollouts})
    facts["accepted"] = {
        task: [sum(r.accepted for r in rollouts if r.task == task), sum(r.task == task for r in rollouts)]
        for task in tasks
    }
    learned: dict[str, Any] = {}
    if processes.main:
        real: Iterator[Episode] = iter(()) if settings.learn_from == "synthetic" else read_episodes(args.data)
        learned = run.learn(real, rollouts)
    facts |= processes.copy_object(learned)
    return facts | {"seconds": {name: round(seconds, 1) for name, seconds in run.seconds.items()}}


def _first(args: argparse.Namespace) -> SmallPolicy:
    """The policy to improve."""
    if args.init is None:
        raise ConfigError(
            f"--method {args.method} improves a policy that there is: give it with --init (a shipped name or a folder)."
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    return SmallPolicy.from_pretrained(find("policy", args.init))


def _imagination(args: argparse.Namespace, policy: SmallPolicy) -> tuple[Imagination, str]:
    """The world model to practise in, and its rig."""
    from wvl_ros.world_model.imagination import imagination
    from wvl_ros.world_model.loading import load_world_model

    model = load_world_model(find("world_model", args.world_model or "small"))
    rig, drawn = str(model.config["rig"]), imagination(model, steps=args.denoising_steps)
    require_whole_calls(policy, drawn)
    return drawn, rig


def _entries(data: Sequence[Path], rig: str, tasks: Sequence[str] | None) -> list[EpisodeEntry]:
    """Episodes of some tasks of the world model's rig: others (DROID's beside the tabletop's) are no starts for it."""
    entries = [entry for path in data for entry in list_episodes(path)]
    found = [entry for entry in entries if not rig or entry.source.endswith(f"/{rig}")]
    if not found:
        raise EpisodeError(
            f"None of the {len(entries)} episodes in '{data[0]}' is of the world model's rig '{rig}'; imagined "
            "rollouts start from their first observations."
        )
    chosen = [entry for entry in found if not tasks or entry.task in tasks]
    missing = set(tasks or ()) - {entry.task for entry in chosen}
    if missing:
        raise UnknownNameError("task among the episodes", min(missing), {entry.task for entry in found})
    return chosen


def _second_judge(world_model: str) -> Judge | None:
    """The visual judge beside the world model; None where there is none, which is told."""
    from wvl_ros.evaluation.visual_judge import FILE
    from wvl_ros.rewards.visual import Visual

    if (find("world_model", world_model) / FILE).is_file():
        return Visual(world_model)
    print(
        "There is no second judge beside the world model (`wvl train visual-judge` makes it): whether the policy "
        "learns to please the reward head alone is not watched.",
        file=sys.stderr,
    )
    return None


def _judge(args: argparse.Namespace) -> Judge:
    from wvl_ros.rewards.registry import make_judge

    name = args.judge or "reward_head"
    if name in ("ground_truth", "operator"):
        raise ConfigError(f"The judge '{name}' cannot say how imagined rollouts end; choose reward_head or vlm.")
    default = (args.world_model or "small") if name in ("reward_head", "visual") else ""
    return make_judge(name, args.judge_checkpoint or default)


def _trust(judge: Judge, imagination: Imagination, rig: str, entries: Sequence[EpisodeEntry]) -> dict[str, Any]:
    """What the judge makes of real rollouts that are imagined once more, told before it is used.

    Raises:
        ConfigError: it says the same of all, or the rollouts ended all alike.
    """
    from wvl_ros.rewards.quality import Quality, require_useful
    from wvl_ros.rewards.truth import is_true
    from wvl_ros.training.imagined_episodes import replay

    known = [entry for entry in entries if is_true(entry)]
    chosen = known[:: math.ceil(max(1, len(known)) / _TRUSTED)]
    if not chosen:
        raise ConfigError("Nobody has said how any of the real rollouts went: label them with `wvl label`.")
    imagined = replay(imagination, [entry.load() for entry in chosen], rig)
    truth = np.array([entry.outcome == "success" for entry in chosen])
    said = judge.probability(imagined) > judge.threshold
    matrix = [int((said == a).astype(int) @ (truth == b)) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))]
    quality = Quality(judge.name, judge.threshold, *matrix)
    print(f"Real rollouts imagined once more by their recorded actions. {quality.sentence}", file=sys.stderr)
    require_useful(quality)
    return quality.to_dict()


def _tabletop_check(episodes: int, workers: int) -> Check:
    """The share of successes of a policy in the tabletop, over so many episodes of each task."""

    def check(folder: Path, tasks: Sequence[str]) -> dict[str, float]:
        from wvl_ros.evaluation.closed_loop import PolicyChoice, Start, evaluate

        starts = [Start(task, CHECK_SEED + i) for task in tasks for i in range(episodes)]
        results = evaluate(PolicyChoice(folder), starts, workers)
        by_task = {task: [r.success for r in results if r.task == task] for task in tasks}
        shares = {task: sum(each) / len(each) for task, each in by_task.items()}
        return {"success": sum(r.success for r in results) / len(results), "episodes": len(results), **shares}

    return check
