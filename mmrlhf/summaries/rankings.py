"""How well scores rank, in numbers: accuracy, differences, margins, and a closer look at one scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmrlhf.summaries.summary import Summary

# whose word decides which response of a pair is the better one
ANNOTATORS, TRUTH = "annotators", "truth"


@dataclass(frozen=True)
class Estimate(Summary):
    """A number and the ends of its 95% interval, None where the data say nothing about its spread."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PartAccuracy(Summary):
    """ACC over pairs and ACC+ over queries of one category."""

    acc: Estimate
    acc_plus: Estimate
    num_pairs: int
    num_queries: int
    num_ties: int


@dataclass(frozen=True)
class Accuracy(PartAccuracy):
    """The same over everything, with its categories (`mmrlhf.metrics.ranking.accuracy_report`)."""

    categories: Mapping[str, PartAccuracy]


@dataclass(frozen=True)
class AccuracyDifference(Summary):
    """One scorer minus another on the same pairs (`mmrlhf.metrics.ranking.accuracy_difference`)."""

    acc: Estimate
    acc_plus: Estimate
    num_pairs: int
    num_queries: int


@dataclass(frozen=True)
class MarginStatistics(Summary):
    """Where the margins of a scorer lie."""

    num_pairs: int
    mean: float
    std: float
    p05: float
    median: float
    p95: float
    share_negative: float


@dataclass(frozen=True)
class CalibrationBin(Summary):
    """A bin of probabilities [low, high): mean probability, and how often it came true."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Calibration(Summary):
    """What `mmrlhf.metrics.calibration.calibration_report` finds."""

    num_pairs: int
    temperature: float
    ece_of_chance: float
    bins: Sequence[CalibrationBin]
    bins_at_temperature: Sequence[CalibrationBin]
    ece: Estimate
    nll: Estimate
    brier: Estimate
    ece_at_temperature: Estimate
    nll_at_temperature: Estimate
    brier_at_temperature: Estimate


@dataclass(frozen=True)
class MarginBin(Summary):
    """How often pairs with margins of one size are right."""

    low: float
    high: float
    margin: float
    accuracy: Estimate
    count: int


@dataclass(frozen=True)
class MarginHistograms(Summary):
    """Counts by category over common bins."""

    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Verdicts(Summary):
    """Pairs of one category that are right, tied and wrong."""

    right: int
    tied: int
    wrong: int
    mean_margin: float


@dataclass(frozen=True)
class ScoreAndLength(Summary):
    """Rank correlations of score and length in characters (None where a side is constant), and some points."""

    correlation: float | None
    correlation_within_queries: float | None
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Surprise(Summary):
    """A pair that is wrong by a large margin; places of its responses in the query."""

    key: str
    category: str
    chosen: int
    rejected: int
    margin: float


@dataclass(frozen=True)
class JudgeReport(Summary):
    """A closer look at one scorer (`mmrlhf.reporting.reward_details.judge_report`).

    ranks: counts [annotators' rank - 1][scorer's rank - 1] under `all` and every category.
    """

    calibration: Calibration
    by_margin: Sequence[MarginBin]
    margins: MarginHistograms
    verdicts: Mapping[str, Verdicts]
    ranks: Mapping[str, Sequence[Sequence[int]]]
    length: ScoreAndLength
    surprises: Sequence[Surprise]


# judge -> scorer -> what was found
Tables = Mapping[str, Mapping[str, Accuracy]]


@dataclass(frozen=True)
class Ranking(Summary):
    """How scorers rank the responses of some queries: accuracy[judge][scorer], the first scorer minus each other one,
    margins by scorer, and a closer look at the first scorer that is no baseline; None without one, or without pairs.

    labelled_by_model: queries that are left out of all this because a model made their labels; None: none.
    """

    queries: int
    accuracy: Tables
    difference: Mapping[str, Mapping[str, AccuracyDifference]]
    margin: Mapping[str, MarginStatistics]
    judge: JudgeReport | None
    labelled_by_model: int | None = field(default=None, kw_only=True)
