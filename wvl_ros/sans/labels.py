"""Who says how an episode went: what can be labelled (a dataset's episodes, a bag), and the reward model as a judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wvl_ros.errors import ConfigError, EpisodeError
from wvl_ros.sans.episode import Episode

if TYPE_CHECKING:
    from wvl_ros.sans.dataset import Dataset

_SIGMA = 0.05  # of the noise on a frame that is judged
BATCH = 64


class Labelled(ABC):
    """One episode whose outcome can be told.

    Attributes:
        name: for people. outcome, outcome_source: as they are now.
    """

    name: str
    outcome: str
    outcome_source: str

    @property
    def judged(self) -> bool:
        """Whether somebody has said how it went."""
        return bool(self.outcome and self.outcome_source)

    @abstractmethod
    def episode(self) -> Episode:
        """The episode with its images; EpisodeError when it is damaged."""

    @abstractmethod
    def label(self, outcome: str, source: str) -> None:
        """Notes the outcome and who says so, whole or not at all."""


class DatasetEpisode(Labelled):
    """An episode of a SANS dataset."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        record = dataset.records[index]
        self.name = f"{index} ({record.episode_id})"
        self.outcome, self.outcome_source = record.outcome, record.outcome_source
        self._dataset, self._index = dataset, index

    def episode(self) -> Episode:
        """See `Labelled`."""
        return self._dataset.read(self._index)

    def label(self, outcome: str, source: str) -> None:
        """See `Labelled`; the rewards follow."""
        self._dataset.label(self._index, outcome, source=source)
        self.outcome, self.outcome_source = outcome, source


class BagEpisode(Labelled):
    """The episode of a bag."""

    def __init__(self, bag: Path) -> None:
        from wvl_ros.sans.bags.label import read_metadata

        information = read_metadata(bag)["rosbag2_bagfile_information"]
        note = information.get("custom_data") or {}
        self.name = str(note.get("episode_id") or bag)
        self.outcome, self.outcome_source = str(note.get("outcome", "")), str(note.get("outcome_source", ""))
        self._bag = bag

    def episode(self) -> Episode:
        """See `Labelled`."""
        from wvl_ros.sans.bags.reader import read_bag

        return read_bag(self._bag)

    def label(self, outcome: str, source: str) -> None:
        """See `Labelled`; metadata.yaml is written anew."""
        from wvl_ros.sans.bags.label import label_bag

        label_bag(self._bag, outcome, source)
        self.outcome, self.outcome_source = outcome, source


def find_labelled(path: Path, episode: str = "", *, everything: bool = False) -> list[Labelled]:
    """What is to be labelled at a path.

    Args:
        path: a SANS dataset, a bag, or the recording's folder around a bag.
        episode: index or id of the dataset's episode; '' for those that nobody has judged yet.
        everything: the judged ones as well.

    Raises:
        EpisodeError: nothing of the kind is there.
    """
    for folder in (path, path / "bag"):
        if (folder / "metadata.yaml").is_file():
            return [BagEpisode(folder)]
    if (path / "meta").is_dir():
        from wvl_ros.sans.dataset import Dataset, is_dataset
        from wvl_ros.sans.sources import episode_index

        if is_dataset(path):
            dataset = Dataset.open(path)
            if episode:
                return [DatasetEpisode(dataset, episode_index(dataset, episode))]
            found = [DatasetEpisode(dataset, index) for index in range(len(dataset))]
            return [each for each in found if everything or not each.judged]
    raise EpisodeError(
        f"There is nothing to label at '{path}'; give a SANS dataset, or a bag or its recording's folder."
    )


@dataclass(frozen=True)
class JudgeConfig:
    """How the reward model judges.

    Attributes:
        checkpoint: a shipped world model or a folder; its config has the threshold of success and for how many frames
            the probability must hold it.
        near_threshold: an episode that is no success but whose probability once passes this is a near-success. The
            shipped model is weak at it: of 240 held-out tabletop episodes, 0.15 (chosen on half of them) found 20 of
            42 near-successes that were not taken for successes, and called 10 of 62 plain failures near.
    """

    checkpoint: str = "small"
    near_threshold: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.near_threshold < 1:
            raise ConfigError(f"near_threshold is a probability between 0 and 1, not {self.near_threshold}.")


@dataclass(frozen=True)
class Verdict:
    """What the reward model says: the outcome, the highest probability, and that of every frame but the first, (T,)."""

    outcome: str
    peak: float
    probabilities: NDArray[np.float64]


class RewardModel:
    """The world model's reward head on recorded frames: each is shown to it with hardly any noise, after the true ones
    before it.
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        """Loads the checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from wvl_ros.checkpoints import find
        from wvl_ros.world_model.loading import load_small_world_model

        self.config = config or JudgeConfig()
        self.model = load_small_world_model(find("world_model", self.config.checkpoint), "Labelling by reward model")

    def judge(self, episode: Episode) -> Verdict:
        """Success, near-success or failure; the same episode always gets the same verdict.

        Raises:
            EpisodeError: it lacks a camera or images at the model's steps, or is shorter than two frames.
        """
        chances = self._probabilities(episode)
        settings = self.model.config
        threshold, frames = float(settings["success_threshold"]), int(settings["success_frames"])
        runs = np.convolve(chances > threshold, np.ones(frames), "valid") if len(chances) >= frames else np.zeros(1)
        peak = float(chances.max())
        success, near = runs.max() >= frames, peak > self.config.near_threshold
        return Verdict("success" if success else "near_success" if near else "failure", peak, chances)

    def _probabilities(self, episode: Episode) -> NDArray[np.float64]:
        import torch

        from wvl_ros.training.frame_cache import episode_arrays, episode_frames
        from wvl_ros.world_model import patches
        from wvl_ros.worlds.imagined_start import is_calibrated

        model, every = self.model, int(self.model.config["actions_per_frame"])
        frames = patches.to_tensor(
            episode_frames(episode, int(model.config["image_size"]), int(model.config["patch"]), every)
        )
        count = len(frames) - 1
        if count < 1:
            raise EpisodeError(f"Episode '{episode.episode_id}' is too short to judge; it has one frame only.")
        kinematics, actions = episode_arrays(episode)
        chunks = actions[: count * every].unflatten(0, (count, every))
        tokens = model.instruction.tokens([episode.instruction])
        calibrated = torch.tensor([float(is_calibrated(episode, str(model.config["rig"])))])
        generator = torch.Generator().manual_seed(0)
        found = []
        with torch.no_grad():
            for start in range(0, count, BATCH):
                now = torch.arange(start, min(start + BATCH, count))
                n = len(now)
                noise = torch.randn((n, *frames.shape[1:]), generator=generator)
                noisy = (1 - _SIGMA) * frames[now + 1] + _SIGMA * noise
                context = model.context(
                    frames[:1].expand(n, -1, -1, -1), kinematics[:1].expand(n, -1), tokens.expand(n, -1),
                    calibrated.expand(n),
                )  # fmt: skip
                sigma, before = torch.full((n,), _SIGMA), frames[(now - 1).clamp(min=0)]
                out = model(noisy, sigma, frames[now], before, kinematics[now * every], chunks[now], context)
                found.append(torch.sigmoid(out.reward))
        return np.asarray(torch.cat(found), np.float64)
