"""What the stages that ask people found: `annotate`, `annotated`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class AnnotateSummary(Summary):
    """Stage `annotate`: queries that were asked about, forms that came of it, and what could not be asked, by reason.

    projects: of Label Studio, name -> tasks; gold: queries among them whose ranking is known.
    """

    tool: str
    queries: int
    twice: int
    gold: int
    forms: int
    annotators: Sequence[str]
    projects: Mapping[str, int]
    refused: Mapping[str, int]
    digest: str


@dataclass(frozen=True)
class Agreement(Summary):
    """How far people agree beyond chance on one dimension: alpha, mean weighted kappa, over how many queries."""

    alpha: Estimate | None
    kappa: Estimate | None
    queries: int


@dataclass(frozen=True)
class Window(Summary):
    """An annotator's agreement with the others from one time (Unix) on, over so many queries."""

    start: float
    agreement: Estimate
    queries: int


@dataclass(frozen=True)
class Annotator(Summary):
    """One annotator: forms (shared: of queries with another's too), median seconds, and how far to be trusted.

    agreement: share of pairs ordered as the others do, a tie against an order counts half; over_time: the same in
    stretches; gold: the same against known rankings; problems: forms that flag one; experts: forms as an expert.
    """

    forms: int
    shared: int
    seconds: float | None
    agreement: Estimate | None
    over_time: Sequence[Window]
    gold_forms: int
    gold: Estimate | None
    problems: int
    experts: int


@dataclass(frozen=True)
class Confusion(Summary):
    """A model against people on pairs of answers.

    counts: rows: the model prefers one, sees none better; columns: people prefer the same (or the first), none, the
    other; agreement: share of pairs ordered alike, a tie against an order counts half.
    """

    counts: Sequence[Sequence[int]]
    agreement: Estimate | None
    queries: int


@dataclass(frozen=True)
class AnnotatedSummary(Summary):
    """Stage `annotated`: what became of queries and forms, and how far the labels can be trusted.

    left_out: reason -> queries without labels; refused: reason -> forms that could not be used; gaps: forms whose ranks
    had gaps, which were closed; unranked: answers without a rank; replaced: queries whose earlier labels went;
    several: queries with forms of several people; disputed: queries in the experts' queue.
    """

    queries: int
    groups: int
    left_out: Mapping[str, int]
    forms: int
    refused: Mapping[str, int]
    gaps: int
    unranked: int
    replaced: int
    several: int
    disputed: int
    pairs: int
    ties: int
    with_reasons: int
    agreement: Mapping[str, Agreement]
    annotators: Mapping[str, Annotator]
    models: Mapping[str, Confusion]
    digest: str
