"""What the stages that make or send packed sets found: `pack`, `expand`, `publish`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class PackSummary(Summary):
    """Stage `pack`: counts of what was packed, merged, stripped and left out; a set has a digest."""

    groups: int
    responses: int
    pairs: int
    ties: int
    images: int
    videos: int
    first_of_several: int
    text_only_groups: int
    conversations: int
    groups_with_media_of_responses: int
    groups_without_pairs: int
    groups_with_explicit_pairs: int
    responses_per_group: Mapping[str, int]
    categories: Mapping[str, int]
    contradictions: int
    duplicate_queries: int
    repeated_responses_merged: int
    repeated_pairs_merged: int
    placeholders_stripped: int
    placeholders_in_answers: int
    ignored_fields: Mapping[str, int]
    lines_in_another_layout: int
    rejected: int
    rejected_by_reason: Mapping[str, int]
    shards: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class CostEstimate(Summary):
    """What expanding was taken to need; cost is None where no prices were given.

    `answered` of the `requests` were there already; tokens and cost are of the others.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    answered: int = 0


@dataclass(frozen=True)
class ExpansionExample(Summary):
    """One reason and what was made of it."""

    key: str
    reason: str
    expansion: str


@dataclass(frozen=True)
class ExpandSummary(Summary):
    """Stage `expand`; examples by reason of refusal are in the file only.

    `failed` are requests that no answer came to; why is among the reasons.
    """

    requests: int
    used: int
    refused: int
    failed: int
    refused_by_reason: Mapping[str, int]
    responses_without_a_reason: int
    estimate: CostEstimate
    examples: Mapping[str, Sequence[ExpansionExample]] | None = None


@dataclass(frozen=True)
class PublishSummary(Summary):
    """Stage `publish`; commit and url only where something was sent."""

    what: str
    repo: str
    repo_type: str
    private: bool
    files: int
    bytes: int
    sent: bool
    commit: str | None = None
    url: str | None = None
