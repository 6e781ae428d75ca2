"""Recording demonstrations: reproducible, and what is there already is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wvl_ros.sans.episode import Episode
from wvl_ros.training.demonstrations import Disturbance, collect, record_demonstration


def test_the_same_seed_gives_the_same_demonstration() -> None:
    one, again = (record_demonstration("pick_place", 100_001, Disturbance(pushes=0.2)) for _ in range(2))
    np.testing.assert_array_equal(again.action, one.action)
    np.testing.assert_array_equal(again.images["wrist_image_left"], one.images["wrist_image_left"])
    assert again.extra == one.extra


def test_collect_keeps_what_is_there(tmp_path: Path) -> None:
    assert collect(tmp_path, ["pick_place", "push"], 1) == 1
    assert collect(tmp_path, ["pick_place", "push"], 2) == 1
    assert collect(tmp_path, ["pick_place", "push"], 2) == 0
    tasks = [Episode.load(path).task for path in sorted(tmp_path.iterdir())]
    assert tasks == ["pick_place", "push"]
