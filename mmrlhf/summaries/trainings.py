"""What the training stages found: `sft`, `reward`, `mmdpo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.summaries.left_out import Quarantined
from mmrlhf.summaries.rankings import Accuracy
from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class Cell(Summary):
    """Queries of one cell of a mixture, and the places that they have in an epoch."""

    groups: int
    places: int


@dataclass(frozen=True)
class Epoch(Summary):
    """What became of an epoch's places."""

    epoch: int
    delivered: int
    padded: int
    quarantined: int


@dataclass(frozen=True, kw_only=True)
class TrainingData(Summary):
    """What was trained on; cells: of a mixture or balance only."""

    groups_per_epoch: int
    steps_per_epoch: int
    padded_per_epoch: int
    cells: Mapping[str, Cell] | None = None
    excluded: Mapping[str, int]
    epochs: Sequence[Epoch]


@dataclass(frozen=True, kw_only=True)
class TrainingSummary(Summary):
    """A training stage.

    Args:
        train, validation: what the last step and the last validation logged.
        heldout: pair accuracy on held-out queries; None for methods without pairs.
        truncated_tokens: of responses that were too long; equal_pairs: times a pair that it made equal was left out.
        critique, critique_source: of a reward model only; objective: of preference training only.
    """

    steps: int
    groups_per_step: int
    seconds: float
    groups_per_second: float
    train: Mapping[str, float]
    validation: Mapping[str, float]
    heldout: Accuracy | None
    truncated_tokens: int
    equal_pairs: int = 0
    quarantined: Quarantined
    data: TrainingData
    critique: str | None = None
    critique_source: str | None = None
    objective: str | None = None
