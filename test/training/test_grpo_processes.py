"""Two processes practise as one does, started as users start them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wvl_ros.policies.network import PolicyConfig
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training.arena import ImaginedArena
from wvl_ros.training.grpo import GRPOSettings
from wvl_ros.training.grpo_trainer import GRPOTrainer
from wvl_ros.training.practice import Practice
from wvl_ros.training.processes import Processes
from wvl_ros.world_model.imagination import Imagination

SCRIPT = """
import importlib.util, sys
from pathlib import Path

def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

here, data, out = sys.argv[1:]
load(f"{here}/test_grpo_processes.py").train(load(f"{here}/conftest.py").LeftOf(0.3), Path(data), Path(out))
"""


class Counting(ImaginedArena):
    """Counts the batches that it is asked for."""

    batches = 0

    def practise(self, *args: Any) -> Practice:
        self.batches += 1
        return super().practise(*args)


def train(world: Imagination, data: Path, out: Path) -> None:
    """Two updates of three batches of rollouts each, as every process makes them; checks count the calls."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    policy = SmallPolicy(PolicyConfig(channels=8, keypoints=4, hidden=32, offset_std=0.1, ripple_std=0.03))
    settings = GRPOSettings(
        updates=2, groups=20, group_size=8, attempts=1, learning_rate=1e-3, temperature=2.0, check_every=1
    )
    calls: list[Path] = []

    def check(folder: Path, tasks: object) -> dict[str, float]:
        assert processes.main
        calls.append(folder)
        return {"success": 0.1 * len(calls), "episodes": 10}

    processes = Processes.join()
    arena = Counting(world, "tabletop")
    GRPOTrainer(policy, arena, list_episodes(data), settings, out, check, processes).fit()
    (out / f"batches_{processes.rank}").write_text(str(arena.batches))
    processes.leave()


@pytest.mark.timeout(300)
def test_two_processes_give_the_policy_of_one(
    left_of: Callable[[float], Imagination],
    entries: list[EpisodeEntry],
    two_processes: Callable[..., None],
    tmp_path: Path,
) -> None:
    assert entries
    train(left_of(0.3), tmp_path / "data", tmp_path / "one")
    (tmp_path / "script.py").write_text(SCRIPT)
    two_processes(tmp_path / "script.py", Path(__file__).parent, tmp_path / "data", tmp_path / "two")
    one, two = (SmallPolicy.from_pretrained(tmp_path / name).network.state_dict() for name in ("one", "two"))
    torch.manual_seed(0)
    untrained = SmallPolicy(PolicyConfig(channels=8, keypoints=4, hidden=32)).network.state_dict()
    assert max(float((tensor - untrained[name]).abs().max()) for name, tensor in one.items()) > 1e-3
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
    shares = [(tmp_path / name).read_text() for name in ("one/batches_0", "two/batches_0", "two/batches_1")]
    assert shares == ["6", "4", "2"]  # of three an update
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 5  # two updates and three checks, told once
