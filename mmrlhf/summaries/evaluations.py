"""What a policy's answers are like, in numbers: the summaries of `evaluate`, `generate` and `report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from mmrlhf.summaries.left_out import Quarantined
from mmrlhf.summaries.rankings import Estimate, Tables
from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class CategoryMeasure(Estimate):
    """A mean over the answers to some queries."""

    queries: int


@dataclass(frozen=True)
class Measure(CategoryMeasure):
    """The same over all answers, with its categories."""

    categories: Mapping[str, CategoryMeasure]


@dataclass(frozen=True)
class AnswerNumbers(Summary):
    """What `mmrlhf.reporting.answer_numbers.report_answers` finds; a measure is None where it was not asked for."""

    queries: int
    num_cut_off: int
    quality: Measure | None
    reward: Measure | None
    kl: Measure | None
    kl_k3: Measure | None
    length: Measure | None
    cut_off: Measure | None
    preference: Tables

    def measures(self) -> dict[str, Measure | None]:
        """What a report compares, by name."""
        return {
            "quality": self.quality,
            "reward": self.reward,
            "kl": self.kl,
            "length": self.length,
            "cut_off": self.cut_off,
        }


@dataclass(frozen=True)
class EvaluateSummary(AnswerNumbers):
    """Stage `evaluate`; `problems` of an endpoint's answers, by reason."""

    temperature: float
    max_new_tokens: int
    quarantined: Quarantined
    problems: Mapping[str, int] | None = None


@dataclass(frozen=True)
class GenerateSummary(Summary):
    """Stage `generate`; `problems` of an endpoint's answers, by reason."""

    queries: int
    queries_without_a_choice: int
    answers: int
    distinct_answers: int
    quality_of_distinct_answers: float | None
    quarantined: Quarantined
    problems: Mapping[str, int] | None = None


@dataclass(frozen=True)
class BestOf(Summary):
    """What the judge's choice among n answers is worth, over the queries with that many; gains are against n = 1.

    kl_bound: nats from the policy at most; quality: where the truth is known.
    """

    n: int
    kl_bound: float
    queries: int
    reward: Estimate
    reward_gain: Estimate
    quality: Estimate | None
    quality_gain: Estimate | None


@dataclass(frozen=True)
class BestOfNSummary(Summary):
    """Stage `best_of_n`; the curves of queries that training does not see, and of the others.

    best_n: where the truth is highest on held-out queries; quality_lost: truth there minus truth at the largest n,
    above 0 where the judge is over-optimised.
    """

    queries: int
    answers: int
    queries_without_rewards: int
    heldout: Sequence[BestOf]
    train: Sequence[BestOf]
    best_n: int | None
    quality_lost: Estimate | None


@dataclass(frozen=True)
class Round(Summary):
    """One round of self-improvement on held-out queries; round 0 is the policy before the first one."""

    round: int
    quality: Estimate | None
    reward: Estimate | None
    kl: Estimate | None
    length: Estimate | None

    def measures(self) -> dict[str, Estimate | None]:
        """What is known after the round, by name."""
        return {"quality": self.quality, "reward": self.reward, "kl": self.kl, "length": self.length}


@dataclass(frozen=True)
class Finding(Summary):
    """A sign of a failure: whether a run shows it (None: nothing to tell it from), what was seen, and what to do."""

    sign: str
    seen: bool | None
    saw: str
    advice: str


_ENDS = ("_low", "_high")


@dataclass(frozen=True)
class ReportSummary(Summary):
    """Stage `report`: the numbers of a run that come first; what is not known is None, and absent in JSON.

    An Estimate `x` is written flat, as `x`, and `x_low` and `x_high` where it has an interval. best_of: answers before
    training to each query, of which quality_best_of and reward_best_of are the one's with the highest reward.
    """

    reward_acc_annotators: Estimate | None = None
    reward_acc_plus_annotators: Estimate | None = None
    reward_acc_truth: Estimate | None = None
    reward_acc_plus_truth: Estimate | None = None
    quality_before: float | None = None
    quality_after: float | None = None
    quality_gain: Estimate | None = None
    best_of: int | None = None
    quality_best_of: Estimate | None = None
    reward_best_of: Estimate | None = None
    quality_better: float | None = None
    quality_worse: float | None = None
    reward_before: float | None = None
    reward_after: float | None = None
    reward_gain: Estimate | None = None
    reward_better: float | None = None
    reward_worse: float | None = None
    kl_before: float | None = None
    kl_after: float | None = None
    length_before: float | None = None
    length_after: float | None = None
    margin_mean: float | None = None
    margin_share_negative: float | None = None
    beta_mean: float | None = None
    beta_max: float | None = None
    stage_seconds: float | None = None
    rounds: Sequence[Round] | None = None
    findings: Sequence[Finding] | None = None

    @classmethod
    def flat_names(cls) -> list[str]:
        """The fields that are written flat."""
        return [field.name for field in dataclasses.fields(cls) if str(field.type).startswith(Estimate.__name__)]

    @override
    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in super().to_json().items():
            if name in self.flat_names():
                content[name] = value["mean"]
                content |= {f"{name}{end}": value[end[1:]] for end in _ENDS if value[end[1:]] is not None}
            else:
                content[name] = value
        return content

    @classmethod
    @override
    def from_json(cls, content: Mapping[str, Any], *, where: object) -> Self:
        nested = dict(content)
        for name in cls.flat_names():
            if name in nested:
                ends = {end[1:]: nested.pop(f"{name}{end}", None) for end in _ENDS}
                nested[name] = {"mean": nested[name], **ends}
        return super().from_json(nested, where=where)
