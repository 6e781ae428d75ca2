"""How good a judge is: precision and recall on episodes whose outcome is known, and whether it tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from wvl_ros.errors import ConfigError, EpisodeError
from wvl_ros.evaluation.wilson import wilson_interval
from wvl_ros.rewards.interface import Judge
from wvl_ros.rewards.truth import is_true
from wvl_ros.sans.episode import Episode

ENOUGH = 5  # episodes of an outcome; a coin gets all of them wrong once in 32 times
_BLOCK = 16  # episodes in memory


@dataclass(frozen=True)
class Rate:
    """A share, `hits` of `trials`, with its Wilson 95 % interval from `low` to `high`."""

    hits: int
    trials: int

    @property
    def value(self) -> float | None:
        """The share; None without trials."""
        return self.hits / self.trials if self.trials else None

    @property
    def low(self) -> float:
        """Lower bound of the interval, 0 without trials."""
        return wilson_interval(self.hits, self.trials)[0]

    @property
    def high(self) -> float:
        """Upper bound of the interval, 1 without trials."""
        return wilson_interval(self.hits, self.trials)[1]

    def __str__(self) -> str:
        if self.value is None:
            return "unknown"
        return f"{self.value:.0%} ({self.low:.0%} to {self.high:.0%}, {self.hits} of {self.trials})"

    def to_dict(self) -> dict[str, Any]:
        """`value`, `interval_95`, `hits` and `trials`."""
        return {
            "value": None if self.value is None else round(self.value, 4),
            "interval_95": [round(self.low, 4), round(self.high, 4)],
            "hits": self.hits,
            "trials": self.trials,
        }


@dataclass(frozen=True)
class Quality:
    """A judge against the truth.

    Attributes:
        judge: its name. threshold: above which its probability meant success.
        tp, fp, fn, tn: episodes: successes it found, others it took for a success, successes it missed, others it
            turned down. A near-success is no success.
    """

    judge: str
    threshold: float
    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def precision(self) -> Rate:
        """Share of true successes among what it takes for one."""
        return Rate(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Rate:
        """Share of the true successes that it finds."""
        return Rate(self.tp, self.tp + self.fn)

    @property
    def false_success(self) -> Rate:
        """Share of the failures that it takes for a success."""
        return Rate(self.fp, self.fp + self.tn)

    @property
    def episodes(self) -> int:
        """Episodes that were judged."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def sentence(self) -> str:
        """For people, with 95 % intervals."""
        return (
            f"Judge '{self.judge}' (success above {self.threshold:g}) on {self.episodes} episodes of known outcome: "
            f"precision {self.precision}, recall {self.recall}, failures taken for a success {self.false_success}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "judge": self.judge,
            "threshold": self.threshold,
            "episodes": self.episodes,
            "matrix": {"tp": self.tp, "fp": self.fp, "fn": self.fn, "tn": self.tn},
            "precision": self.precision.to_dict(),
            "recall": self.recall.to_dict(),
            "false_success": self.false_success.to_dict(),
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Quality:
        """What `to_dict` gave."""
        return cls(table["judge"], table["threshold"], **table["matrix"])


def measure(judge: Judge, labelled: Iterable[Episode]) -> Quality:
    """Asks a judge about episodes whose outcome is known; they should be real ones that it was not trained on.

    Args:
        labelled: may be read one after another; only a few are kept at a time.

    Raises:
        ConfigError: there are none.
        EpisodeError: an episode's outcome is unknown or a judge's opinion, or the judge cannot judge it.
    """
    counts: Counter[tuple[bool, bool]] = Counter()
    episodes = iter(labelled)
    while block := list(islice(episodes, _BLOCK)):
        for episode in block:
            if not is_true(episode):
                raise EpisodeError(
                    f"A judge is measured against what is known, but '{episode.outcome_source or 'nobody'}' says how "
                    f"episode '{episode.episode_id}' went ('{episode.outcome}'); label it with `wvl label`."
                )
        said = judge.probability(block) > judge.threshold
        counts.update((bool(yes), episode.success) for yes, episode in zip(said, block, strict=True))
    if not counts:
        raise ConfigError(f"The judge '{judge.name}' cannot be measured without labelled episodes.")
    return Quality(
        judge.name,
        judge.threshold,
        tp=counts[True, True],
        fp=counts[True, False],
        fn=counts[False, True],
        tn=counts[False, False],
    )


def require_useful(quality: Quality) -> None:
    """Refuses a judge that does not tell success from failure.

    Raises:
        ConfigError: one outcome was not among the episodes, or there were enough of it (`ENOUGH`) and all got the same
            wrong verdict: it always says yes, or always no.
    """
    missing = "success" if not quality.recall.trials else "failure" if not quality.false_success.trials else ""
    if missing:
        raise ConfigError(
            f"The judge '{quality.judge}' cannot be checked: no {missing} is among the {quality.episodes} labelled "
            "episodes; add some of both outcomes."
        )
    for answer, wrong, right, outcome in (
        ("yes", quality.fp, quality.tn, "failures"),
        ("no", quality.fn, quality.tp, "successes"),
    ):
        if right == 0 and wrong >= ENOUGH:
            raise ConfigError(
                f"The judge '{quality.judge}' says {answer} to all {wrong} {outcome} (threshold "
                f"{quality.threshold:g}) and cannot tell success from failure; fine-tune it, move its threshold, or "
                "use another judge."
            )
