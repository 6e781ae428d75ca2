"""How far from where it is policies take what an instruction names to be, in the first frames of tabletop scenes.

python -m benchmarks.places --checkpoint base --checkpoint improved --seed 2900000 --episodes 200
"""

from __future__ import annotations

import argparse
from contextlib import closing

import numpy as np
import torch

from wvl_ros.checkpoints import find
from wvl_ros.policies.places import places_in_metres
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.worlds.tabletop import TabletopWorld

TASKS = ("pick_place", "stack")  # whose places are those of things: one pushes from beside them


def main() -> None:
    """Prints of each policy, task and kind of scene the median error of object and goal, and the share within 4 cm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.places", description=__doc__)
    parser.add_argument("--checkpoint", action="append", required=True, help="a shipped name or a folder")
    parser.add_argument("--seed", type=int, default=2_900_000)
    parser.add_argument("--episodes", type=int, default=200, help="scenes of each task")
    args = parser.parse_args()
    policies = {name: SmallPolicy.from_pretrained(find("policy", name)) for name in args.checkpoint}
    for task in TASKS:
        errors: dict[tuple[str, str], list[np.ndarray]] = {}
        with closing(TabletopWorld(task, 128, 128)) as world:
            for seed in range(args.seed, args.seed + args.episodes):
                observation, info = world.reset(seed=seed)
                state = world.table_state()
                true = np.stack([state.objects[state.target, :2], state.goal[:2]])
                for name, policy in policies.items():
                    with torch.inference_mode():
                        known = policy.network.context(policy.inputs([observation], [info["instruction"]]))
                    found = places_in_metres(known.places)[0, :, :2].numpy()
                    gap = 1000 * np.linalg.norm(found - true, axis=1)
                    errors.setdefault((name, info["variant"]), []).append(gap)
        for (name, variant), rows in sorted(errors.items()):
            gap = np.stack(rows)
            middle, near = np.median(gap, 0), 100 * (gap < 40).mean(0)
            print(
                f"{name:24} {task:10} {variant:11} {len(gap):3} scenes: object {middle[0]:3.0f} mm ({near[0]:3.0f} % "
                f"within 40), goal {middle[1]:3.0f} mm ({near[1]:3.0f} %)",
                flush=True,
            )


if __name__ == "__main__":
    main()
