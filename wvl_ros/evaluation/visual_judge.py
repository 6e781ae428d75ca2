"""Who looks at a video and says whether it ends in success: trained on real frames only, for the visual alignment.

World-VLA-Loop has people compare how an imagined and a true video end; this classifier stands in for them. It never
sees an imagined frame in training, and its accuracy on true videos is printed beside what it says of imagined ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wvl_ros.errors import CheckpointError
from wvl_ros.training.checkpointing import load_state, module_tensors, restore_module, save_state
from wvl_ros.training.frame_cache import FrameCache
from wvl_ros.training.misnaming import Misnaming
from wvl_ros.training.outcome_fit import fit_outcome
from wvl_ros.world_model import patches
from wvl_ros.world_model.outcome import OutcomeNetwork

FILE = "visual_judge.safetensors"
LAST = 3  # frames at the end that are judged, 0.6 s
MEMBERS = 2  # networks whose verdicts are averaged


class VisualJudge(nn.Module):
    """Several `OutcomeNetwork` whose logits are averaged.

    Args:
        patch: pixels along a side of a patch. grid: patches along a side, an even number. members: networks.
        width: of each.
    """

    def __init__(
        self, vocabulary: list[str], patch: int = 4, grid: int = 16, members: int = MEMBERS, width: int = 64
    ) -> None:
        super().__init__()
        shape = {"patch": patch, "grid": grid, "members": members, "width": width}
        self.facts = {"vocabulary": list(vocabulary)} | shape
        self.members = nn.ModuleList([OutcomeNetwork(vocabulary, 3 * patch**2, grid, width) for _ in range(members)])

    def tokens(self, instructions: list[str]) -> Tensor:
        """Word numbers (B, words) of instructions."""
        return self.members[0].instruction.tokens(instructions)  # type: ignore[union-attr, operator]

    def forward(self, first: Tensor, now: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B,) of success: frames float (B, C, G, G) in -1..1, word numbers (B, words)."""
        return torch.stack([member(first, now, tokens) for member in self.members]).mean(0)


def fit_judge(
    cache: FrameCache,
    vocabulary: list[str],
    patch: int,
    *,
    steps: int = 1800,
    batch: int = 72,
    seed: int = 0,
    members: int = MEMBERS,
    misnaming: Misnaming | None = None,
) -> VisualJudge:
    """Trains a judge on the true frames of a cache, see `fit_outcome`; `steps` are the updates of each member."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisualJudge(vocabulary, patch, int(cache.frames.shape[1]), members)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own hints lack it
    generator = torch.Generator().manual_seed(seed)
    for number, member in enumerate(model.members):
        assert isinstance(member, OutcomeNetwork)
        name = f"visual judge {number + 1} of {members}"
        fit_outcome(member, cache, patch, steps, generator, misnaming=misnaming, batch=batch, name=name)
    return model.eval()


@torch.no_grad()
def judge_videos(
    model: VisualJudge,
    cache: FrameCache,
    episodes: NDArray[np.int64],
    patch: int,
    videos: list[NDArray[np.uint8]] | None,
) -> NDArray[np.float64]:
    """Probability (N,) that each video ends in success, by its last frames.

    Args:
        videos: N arrays of frames as patches (T, G, G, C), from frame 1 on; None judges the true ones.
    """
    chances = []
    for row, episode in enumerate(episodes.tolist()):
        count = int(cache.frame_count[episode])
        start = int(cache.frame_start[episode])
        frames = cache.frames[start + 1 : start + count] if videos is None else videos[row]
        now = patches.to_tensor(frames[-LAST:])
        first = patches.to_tensor(cache.frames[start : start + 1]).expand(len(now), -1, -1, -1)
        tokens = model.tokens([cache.instructions[episode]]).expand(len(now), -1)
        chances.append(float(torch.sigmoid(model(first, now, tokens)).mean()) if len(now) else 0.0)
    return np.array(chances)


def save_judge(folder: Path, model: VisualJudge) -> None:
    """Puts the judge beside a checkpoint, in bfloat16."""
    tensors = {name: tensor.bfloat16() for name, tensor in module_tensors(model, "judge").items()}
    save_state(folder / FILE, tensors, {"trained_on": "true frames", "judge": model.facts})


def load_judge(folder: Path) -> VisualJudge | None:
    """The judge beside a checkpoint; None where there is none, or only one of a former version.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    tensors, facts = load_state(folder / FILE)
    if "judge" not in facts:
        return None
    try:
        model = VisualJudge(**facts["judge"])
        restore_module(model, tensors, "judge")
    except (TypeError, CheckpointError) as error:
        raise CheckpointError(
            f"The judge '{folder / FILE}' is damaged; make it again with `wvl train visual-judge`."
        ) from error
    return model.eval()
