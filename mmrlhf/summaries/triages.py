"""What the stages that spare people work found: `audit`, `triage`, `labelled`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class AuditSummary(Summary):
    """Stage `audit`: queries that were drawn, of how many; always: those that people get in any case, by category."""

    drawn: int
    pool: int
    always: Mapping[str, int]
    digest: str


@dataclass(frozen=True)
class TestedShare(Summary):
    """One threshold: share of the pool below it, audited queries there, those that disagree, the upper bound."""

    share: float
    threshold: float
    audited: int
    disagreements: int
    bound: float
    passed: bool


@dataclass(frozen=True)
class TriageSummary(Summary):
    """Stage `triage`: who labels what, and why a model may.

    pool: queries that a model might label; audited: of them, by people without a proposal (fitted: those of them that
    only the temperature is fitted on); known: labelled before; disagreement: of people with proposals on the whole
    audit, a share of pairs; among_people: of two people on one query of it; certified: share of the pool;
    tested: thresholds in turn; seconds: median of a form; asked, automatic, left_out: queries of this round;
    uncertified: of the automatic ones, those that nothing was certified about; always: asked in any case.
    """

    model: str
    pool: int
    audited: int
    fitted: int
    known: int
    temperature: float
    limit: float
    level: float
    disagreement: Estimate | None
    among_people: Estimate | None
    certified: float
    threshold: float | None
    tested: Sequence[TestedShare]
    seconds: float | None
    affordable: int | None
    always: int
    asked: int
    automatic: int
    uncertified: int
    left_out: Mapping[str, int]
    digest: str


@dataclass(frozen=True)
class LabelledSummary(Summary):
    """Stage `labelled`: queries with labels by who made them, the audit's beside them, and those without, by reason."""

    groups: int
    by: Mapping[str, int]
    audit: int
    left_out: Mapping[str, int]
    pairs: int
    digest: str
