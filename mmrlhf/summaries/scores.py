"""What the stages on scores found.

These are `score`, `annotations`, `mean_rewards`, `rewardbench`, `score_file`, `calibrate`, `reference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.summaries.judges import JudgeFindings
from mmrlhf.summaries.left_out import Quarantined
from mmrlhf.summaries.rankings import Accuracy, Calibration, MarginBin, MarginHistograms, Ranking, Verdicts
from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class ScoreSummary(Summary):
    """Stage `score`; counts are of the whole table, rates of the run that finished it, over all ranks."""

    writes_critiques: bool
    critique_source: str
    queries_scored: float
    responses_scored: float
    queries_per_second: float
    responses_per_second: float
    critique_tokens_per_second: float
    responses_shortened: float
    critiques_cut: float
    quarantined: Quarantined
    heldout: Ranking
    train: Ranking


@dataclass(frozen=True)
class AnnotationsSummary(Summary):
    """Stage `annotations`; weights of dimensions, none where the truth gave the rewards."""

    weights: Mapping[str, float]
    heldout: Ranking
    train: Ranking


@dataclass(frozen=True)
class RewardScale(Summary):
    """What is taken off a table's rewards, and what they are divided by, before they are averaged."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class MeanRewardsSummary(Summary):
    """Stage `mean_rewards`; lacking: table -> queries that it has not, or not all responses of."""

    scaling: str
    queries: int
    lacking: Mapping[str, int]
    scales: Mapping[str, RewardScale]
    heldout: Ranking
    train: Ranking


# of the stages that write a table of rewards for training
RewardsSummary = ScoreSummary | AnnotationsSummary | MeanRewardsSummary


@dataclass(frozen=True)
class RewardBenchSummary(Ranking):
    """Stage `rewardbench`; macro: scorer -> mean of its categories' ACC, by the annotators.

    What was cut is known where it scored the responses itself; `judges` are the generative ones, by scorer;
    `official`: scorer -> what the benchmark's own script reports, where that is no accuracy over pairs.
    """

    macro: Mapping[str, float]
    quarantined: Quarantined
    responses_shortened: float | None = None
    critiques_cut: float | None = None
    judges: Mapping[str, JudgeFindings] | None = None
    official: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class ScoreFileSummary(Summary):
    """Stage `score_file`."""

    queries: int
    responses: int
    responses_scored: float
    responses_per_second: float
    responses_shortened: int
    critiques_cut: int
    quarantined: Quarantined


@dataclass(frozen=True)
class CalibrateSummary(Summary):
    """Stage `calibrate`."""

    accuracy: Accuracy
    calibration: Calibration
    by_margin: Sequence[MarginBin]
    margins: MarginHistograms
    verdicts: Mapping[str, Verdicts]


@dataclass(frozen=True)
class ReferenceSummary(Summary):
    """Stage `reference`; counts are of the whole table, rates of the run that finished it, over all ranks."""

    queries: float
    responses: float
    queries_per_second: float
    responses_per_second: float
    responses_shortened: float
    quarantined: Quarantined
