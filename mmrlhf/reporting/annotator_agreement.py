"""How well the annotators of a data set agree, where it says what each of them gave.

A record says so in its `meta`: `annotations` holds, per dimension, one list of levels per annotator (one per response,
null where there is none); `model_annotations` the same of models that were asked as annotators. Queries whose lists do
not fit their responses are counted, not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrlhf.metrics.agreement import RaterAgreement, agreement_between, rater_agreement
from mmrlhf.metrics.intervals import Interval
from mmrlhf.records.fields import is_number
from mmrlhf.reporting.inputs import read_group
from mmrlhf.shards.index import Index
from mmrlhf.types import PreferenceGroup

HUMANS, MODELS = "annotations", "model_annotations"


@dataclass(frozen=True)
class Dimension:
    """One dimension: how humans agree with each other, and with models (mean kappa); None where there are not both."""

    humans: RaterAgreement | None
    models: Interval | None


@dataclass(frozen=True)
class AnnotationReport:
    """Agreement by dimension, over how many queries, of which so many could not be read."""

    dimensions: Mapping[str, Dimension]
    num_queries: int
    num_unreadable: int


def annotation_report(groups: Sequence[PreferenceGroup]) -> AnnotationReport | None:
    """Agreement per dimension; None where no query has two annotators, or humans and models."""
    found: dict[str, dict[str, list[np.ndarray | None]]] = {}
    unreadable: set[int] = set()
    for number, group in enumerate(groups):
        for kind in (HUMANS, MODELS):
            for name, levels in _dimensions(group, kind).items():
                table = _table(levels, len(group.responses))
                if table is None:
                    unreadable.add(number)
                else:
                    sides = found.setdefault(name, {HUMANS: [None] * len(groups), MODELS: [None] * len(groups)})
                    sides[kind][number] = table
    dimensions = {name: _agreement(sides[HUMANS], sides[MODELS]) for name, sides in found.items()}
    dimensions = {name: part for name, part in dimensions.items() if part != Dimension(None, None)}
    return AnnotationReport(dimensions, len(groups), len(unreadable)) if dimensions else None


def read_annotated(index: Index, *, limit: int, seed: int = 0) -> list[PreferenceGroup]:
    """Read at most `limit` queries, drawn at random; none at all if the first ones are not annotated like this."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(index))[:limit])
    first = _read(index, rows[:20])
    if not any(_dimensions(group, HUMANS) for group in first):
        return []
    return [*first, *_read(index, rows[20:])]


def _read(index: Index, rows: np.ndarray) -> list[PreferenceGroup]:
    return [group for row in rows if (group := read_group(index, int(row), media=False)) is not None]


def _dimensions(group: PreferenceGroup, kind: str) -> Mapping[str, Any]:
    value = group.meta.get(kind)
    return value if isinstance(value, Mapping) else {}


def _table(levels: Any, num_responses: int) -> np.ndarray | None:
    """(annotators, K) with nan for null, or None where this is no such table."""
    if not isinstance(levels, list) or not levels:
        return None
    if not all(isinstance(row, list) and len(row) == num_responses for row in levels):
        return None
    if not all(cell is None or is_number(cell) for row in levels for cell in row):
        return None
    return np.array([[np.nan if cell is None else cell for cell in row] for row in levels], dtype=np.float64)


def _agreement(humans: Sequence[np.ndarray | None], models: Sequence[np.ndarray | None]) -> Dimension:
    both = [(one, other) for one, other in zip(humans, models, strict=True) if one is not None and other is not None]
    tables = [table for table in humans if table is not None]
    several = any(len(table) > 1 for table in tables)
    return Dimension(
        humans=rater_agreement(tables) if several else None,
        models=agreement_between([one for one, _ in both], [other for _, other in both]) if both else None,
    )
