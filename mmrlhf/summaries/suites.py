"""What benchmarks of policies found: one model's scores, and two models compared (`mmrlhf.suites`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmrlhf.summaries.judges import JudgeUse
from mmrlhf.summaries.left_out import Quarantined
from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.summary import Summary

# of the JSON below: raised when a key changes its meaning
SCHEMA = 1


@dataclass(frozen=True)
class BenchmarkScore(Summary):
    """One model on one benchmark.

    Args:
        documents: that were to be answered; scored: of them; pictures: clusters behind these.
        left_out: documents without a score, by reason.
        score: the mean, with an interval over pictures; strict: as the benchmark's own code parses answers.
        parsed: share of answers in the form that was asked for; None where any text is.
        words: of an answer, on average; cut: share of answers that ended at the longest length allowed.
        aggregates: numbers in the benchmark's own units that are no mean over documents.
    """

    title: str
    dimension: str
    documents: int
    scored: int
    pictures: int
    left_out: Mapping[str, int]
    score: Estimate | None
    strict: Estimate | None
    parsed: float | None
    words: float
    cut: float
    aggregates: Mapping[str, float]


@dataclass(frozen=True)
class SuiteScores(Summary):
    """Stage `suite_scores`."""

    schema: int
    benchmarks: Mapping[str, BenchmarkScore]
    judge: JudgeUse | None = None


@dataclass(frozen=True)
class SuiteAnswers(Summary):
    """Stage `suite_answers`; seconds: of answering, by benchmark."""

    documents: int
    pictures: int
    contexts: int
    answered: int
    cut: int
    seconds: Mapping[str, float]
    quarantined: Quarantined


@dataclass(frozen=True)
class BenchmarkSource(Summary):
    """Where a benchmark's questions are from.

    Args:
        data: the hub's data set, a folder, or `drawn here`; split: of it.
        revision: the hub's commit; None for other data, or where nothing tells it.
        chosen: who named the commit: mmrlhf (`pinned`), the user (`given`), nobody (`newest`); None for other data.
        program: whose code asks and scores, with its version; None: ours.
        task_version: what that program calls the version of its task.
    """

    data: str
    split: str
    revision: str | None = None
    chosen: str | None = None
    program: str | None = None
    task_version: str | None = None


@dataclass(frozen=True)
class SuiteDocuments(Summary):
    """Stage `suite_documents`: documents by benchmark, media in all, and benchmarks that are not there, with why.

    `revisions`: the hub's commit of every data set that came from there; `sources`: where each is from, in full.
    """

    documents: Mapping[str, int]
    media: int
    absent: Mapping[str, str]
    revisions: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, BenchmarkSource] | None = None


@dataclass(frozen=True)
class Paired(Summary):
    """One benchmark, two models, on the documents that both have a score of.

    Args:
        left_out: documents that are not in the difference, by reason.
        p: of a sign-flip test over pictures; p_holm: adjusted for the whole table.
        fixed, broken: documents whose score rose and fell.
        detectable: the smallest difference that would be found 4 times in 5, at the spread that these documents show.
        standardised: the difference in units of the scores' spread.
        strict: the difference of strict scores.
    """

    title: str
    dimension: str
    documents: int
    pictures: int
    left_out: Mapping[str, int]
    before: Estimate
    after: Estimate
    difference: Estimate
    p: float
    p_holm: float
    fixed: int
    broken: int
    detectable: float
    standardised: Estimate | None
    strict_before: float | None
    strict_after: float | None
    strict: Estimate | None
    parsed_before: float | None
    parsed_after: float | None
    words_before: float
    words_after: float
    published_before: float | None = None
    published_after: float | None = None
    published_note: str | None = None


@dataclass(frozen=True)
class Dimension(Summary):
    """Benchmarks of one dimension: the mean of their standardised differences, and which had none."""

    benchmarks: int
    standardised: Estimate | None


@dataclass(frozen=True)
class SuiteComparison(Summary):
    """Stages `report_benchmarks` and `compare`.

    Args:
        uncompared: benchmarks without a common document, with why.
        overall: the mean of all benchmarks' standardised differences, each counting once.
        sources: where each benchmark's questions are from, where that is known.
        absent: benchmarks that were asked for and could not be read, with why.
    """

    schema: int
    benchmarks: Mapping[str, Paired]
    uncompared: Mapping[str, str]
    dimensions: Mapping[str, Dimension]
    overall: Estimate | None = None
    sources: Mapping[str, BenchmarkSource] | None = None
    absent: Mapping[str, str] | None = None
