"""Two processes imagine and learn what one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
import torch

from wvl_ros.policies.small import SmallPolicy
from wvl_ros.sans.episodes import EpisodeEntry, list_episodes
from wvl_ros.training.processes import Processes
from wvl_ros.training.vlaw_run import ROLLOUTS_FILE
from wvl_ros.world_model.imagination import Imagination

HERE = Path(__file__).parent
SCRIPT = f"""
import sys
from pathlib import Path
from runpy import run_path

world = run_path("{HERE}/conftest.py")["LeftOf"](0.3)
run_path("{HERE}/test_vlaw_processes.py")["update"](world, Path(sys.argv[1]), Path(sys.argv[2]))
"""


def update(world: Imagination, data: Path, out: Path) -> None:
    """An update as every process makes it."""
    torch.set_num_threads(1)
    processes = Processes.join()
    run = run_path(f"{HERE}/test_vlaw.py")["_vlaw"](world, list_episodes(data), out)
    run.processes = processes
    rollouts = run.imagine()
    assert len(rollouts) == 192
    if processes.main:
        run.learn(iter(()), rollouts)
    processes.wait()
    processes.leave()


@pytest.mark.timeout(300)
def test_two_processes_make_the_update_of_one(
    left_of: Callable[[float], Imagination],
    entries: list[EpisodeEntry],
    two_processes: Callable[..., None],
    tmp_path: Path,
) -> None:
    assert entries
    update(left_of(0.3), tmp_path / "data", tmp_path / "one")
    (tmp_path / "script.py").write_text(SCRIPT)
    two_processes(tmp_path / "script.py", tmp_path / "data", tmp_path / "two")
    one, two = ((tmp_path / name / ROLLOUTS_FILE).read_text() for name in ("one", "two"))
    assert one == two
    mine, other = (SmallPolicy.from_pretrained(tmp_path / name).network.state_dict() for name in ("one", "two"))
    assert all(torch.equal(mine[name], other[name]) for name in mine)
