"""How well the annotators of a data set agree, where it says what each of them gave.

A record says so in its `meta`: `annotations` holds, per dimension, one list of levels per annotator (one per response,
null where there is none); `model_annotations` the same of models that were asked as annotators. Queries whose lists do
not fit their responses are counted, not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf.metrics.agreement import agreement_between, rater_agreement
from mmrlhf.shards.index import Index
from mmrlhf.types import PreferenceGroup

HUMANS, MODELS = "annotations", "model_annotations"


def annotation_report(groups: Sequence[PreferenceGroup], *, seed: int = 0) -> dict[str, Any] | None:
    """Agreement per dimension; None where no query has two annotators, or humans and models. JSON-able.

    Returns: {"dimensions": {name: `rater_agreement`, with `models` (kappa of humans against models) where both are
        there}, "num_queries", "num_unreadable"}.
    """
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
    dimensions = {name: _agreement(sides[HUMANS], sides[MODELS], seed) for name, sides in found.items()}
    dimensions = {name: part for name, part in dimensions.items() if part}
    if not dimensions:
        return None
    return {"dimensions": dimensions, "num_queries": len(groups), "num_unreadable": len(unreadable)}


def read_annotated(index: Index, *, limit: int, seed: int = 0) -> list[PreferenceGroup]:
    """Read at most `limit` queries, drawn at random; none at all if the first ones are not annotated like this."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(index))[:limit])
    first = [index.read(int(row)) for row in rows[:20]]
    if not any(_dimensions(group, HUMANS) for group in first):
        return []
    return [*first, *(index.read(int(row)) for row in rows[20:])]


def _dimensions(group: PreferenceGroup, kind: str) -> Mapping[str, Any]:
    value = group.meta.get(kind)
    return value if isinstance(value, Mapping) else {}


def _table(levels: Any, num_responses: int) -> np.ndarray | None:
    """(annotators, K) with nan for null, or None where this is no such table."""
    if not isinstance(levels, list) or not levels:
        return None
    if not all(isinstance(row, list) and len(row) == num_responses for row in levels):
        return None
    if not all(cell is None or isinstance(cell, int | float) for row in levels for cell in row):
        return None
    return np.array([[np.nan if cell is None else cell for cell in row] for row in levels], dtype=np.float64)


def _agreement(
    humans: Sequence[np.ndarray | None], models: Sequence[np.ndarray | None], seed: int
) -> dict[str, Any] | None:
    both = [(one, other) for one, other in zip(humans, models, strict=True) if one is not None and other is not None]
    tables = [table for table in humans if table is not None]
    part: dict[str, Any] = {}
    if any(len(table) > 1 for table in tables):
        part = rater_agreement(tables, seed=seed)
    if both:
        part["models"] = agreement_between([one for one, _ in both], [other for _, other in both], seed=seed)
    return part or None
