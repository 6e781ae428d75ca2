"""`wvl train policy`: the small VLA by behaviour cloning on demonstrations, or by GRPO in imagination."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wvl_ros.checkpoints import find
from wvl_ros.errors import ConfigError, EpisodeError
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.policies.tokenizer import WordTokenizer
from wvl_ros.training.demonstrations import collect
from wvl_ros.training.grpo import GRPOSettings
from wvl_ros.training.samples import Samples, build_samples, read_episodes
from wvl_ros.training.settings import read_settings
from wvl_ros.training.supervised import SupervisedTrainer, TrainConfig

METHODS = ("sft", "grpo")
CHECK_SEED = 930_000  # of the tabletop: checks of a policy while it practises


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `wvl train policy`."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="sft",
        help="how to train (sft: supervised, on demonstrations; grpo: by practice in the world model)",
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="SANS datasets or folders of episode files")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the new checkpoint; a stopped training goes on there"
    )
    parser.add_argument("--init", help="checkpoint to start from: a shipped name or a folder (default: fresh weights)")
    parser.add_argument(
        "--config", type=Path, help="YAML of training settings (see config/policy_small.yaml and policy_grpo.yaml)"
    )
    parser.add_argument("--minutes", type=float, help="sft: training time (default: 5)")
    parser.add_argument("--steps", type=int, help="sft: number of steps, instead of or besides --minutes")
    parser.add_argument(
        "--demonstrations", type=int, default=0, help="sft: first record so many in the tabletop into the first --data"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=["pick_place", "push", "stack", "sweep"], help="for --demonstrations"
    )
    parser.add_argument("--world-model", default="small", help="grpo: a shipped name or a folder (default: small)")
    parser.add_argument("--updates", type=int, help="grpo: updates of the policy (default: the configuration's)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes in the tabletop")
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: sft 1, small steps gain nothing from more; grpo: torch's)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains a policy and writes its checkpoint; gives the folder and the last figures."""
    for name in ("minutes", "steps", "updates"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ConfigError(f"--{name} must be positive, but is {getattr(args, name)}.")
    return _practise(args) if args.method == "grpo" else _clone(args)


def show(result: dict[str, Any]) -> None:
    """Prints the result for people."""
    if result["method"] == "grpo":
        print(f"{result['updates']} updates after {result['rollouts']} imagined rollouts; {result['reason']}.")
        if "imagined_success" in result:
            print(f"Success in imagination in the last update: {result['imagined_success']:.0%}")
        for check in result["checks"]:
            print(f"In the real world after update {check['update']}: {check['success']:.0%} of {check['episodes']}")
    else:
        print(f"Trained {result['steps']} steps in {result['minutes']} min on {result['decisions']} decisions.")
        print("Losses: " + ", ".join(f"{name} {value:.3f}" for name, value in result["losses"].items()))
    print(f"The checkpoint is in {result['checkpoint']}")


def _clone(args: argparse.Namespace) -> dict[str, Any]:
    config = TrainConfig.from_yaml(args.config) if args.config else TrainConfig()
    if args.minutes is None and args.steps is None:
        args.minutes = 5.0
    torch.set_num_threads(args.threads or 1)
    recorded = collect(args.data[0], args.tasks, args.demonstrations, args.workers)
    policy, samples = _prepare(args.init, config, args.data)
    trainer = SupervisedTrainer(policy, samples, config, args.out)
    losses = trainer.fit(args.minutes, args.steps)
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


def _practise(args: argparse.Namespace) -> dict[str, Any]:
    from wvl_ros.sans.episodes import list_episodes
    from wvl_ros.training.grpo_trainer import GRPOTrainer
    from wvl_ros.world_model.imagination import imagination
    from wvl_ros.world_model.loading import load_world_model

    if args.init is None:
        raise ConfigError("GRPO improves a policy that there is: give it with --init (a shipped name or a folder).")
    settings = read_settings(GRPOSettings, args.config) if args.config else GRPOSettings()
    if args.updates is not None:
        settings = replace(settings, updates=args.updates)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_world_model(find("world_model", args.world_model))
    policy = SmallPolicy.from_pretrained(find("policy", args.init))
    if policy.config.head != "gaussian":
        raise ConfigError(
            f"'{args.init}' has a {policy.config.head} head, which gives no probability of an action; GRPO needs a "
            "policy with the gaussian head (setting `head` of `wvl train policy --method sft`)."
        )
    entries = [entry for path in args.data for entry in list_episodes(path)]
    if not entries:
        raise EpisodeError(f"There are no episodes in '{args.data[0]}'; practice starts from their first observations.")
    tasks = sorted({entry.task for entry in entries})

    def check(folder: Path) -> dict[str, float]:
        from wvl_ros.evaluation.policy import PolicyChoice, Start, evaluate

        starts = [Start(task, CHECK_SEED + i) for task in tasks for i in range(settings.check_episodes)]
        results = evaluate(PolicyChoice(folder), starts, args.workers)
        by_task = {task: [r.success for r in results if r.task == task] for task in tasks}
        shares = {task: sum(each) / len(each) for task, each in by_task.items()}
        return {"success": sum(r.success for r in results) / len(results), "episodes": len(results), **shares}

    trainer = GRPOTrainer(policy, imagination(model), str(model.config["rig"]), entries, settings, args.out, check)
    return {"method": "grpo", "checkpoint": str(args.out), **trainer.fit()}
