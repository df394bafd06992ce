"""One annotated query of the forms of several annotators: ranks with ties, scores, reasons, and where they are from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from mmrlhf.annotation.filled_forms import DIMENSIONS, Form
from mmrlhf.annotation.pair_orders import one_ranking
from mmrlhf.types import PreferenceGroup, Response

# in `meta.annotations`, beside the dimensions
RANKING = "ranking"
SUPERSEDED = "filled in again later by the same annotator"
_ORIGIN = ("annotator", "kind", "tool", "origin", "at", "seconds", "problem")


def latest(forms: Iterable[Form]) -> tuple[list[Form], list[Form]]:
    """Each annotator's last form of each query, in the order of their first; and the earlier ones."""
    found: dict[tuple[str, str, str], Form] = {}
    earlier: list[Form] = []
    for form in forms:
        place = (form.key, form.kind, form.annotator)
        before = found.get(place)
        if before is None or (form.at or 0.0) >= (before.at or 0.0):
            found[place] = form
            earlier += [] if before is None else [before]
        else:
            earlier.append(form)
    return list(found.values()), earlier


def counted(forms: Sequence[Form]) -> list[Form]:
    """The forms of one query that its labels follow from: people's, or experts' alone where there are any."""
    people = [form for form in forms if form.kind != "model"]
    experts = [form for form in people if form.kind == "expert"]
    return experts or people


def annotated_group(group: PreferenceGroup, forms: Sequence[Form]) -> PreferenceGroup:
    """A query with what its annotators said instead of all that was said about its answers before.

    Ranks are the majority's on every two answers (`one_ranking`), scores the mean of all who gave one. Reasons, and
    the short critique that they make together, are those of one annotator, whose scores are nearest to the means: so
    no critique contradicts itself. `meta.annotations` keeps every score and rank, `meta.model_annotations` those of
    models, `meta.annotators` whose they are and where from, and `meta.labels.by` who made the labels.

    Args:
        forms: usable ones of this query, of which at least one is no model's.
    """
    people = sorted(counted(forms), key=lambda form: form.annotator)
    models = sorted((form for form in forms if form.kind == "model"), key=lambda form: form.annotator)
    means = {name: _means(people, name) for name in DIMENSIONS}
    ranks = one_ranking([form.ranks for form in people])
    said = sorted(people, key=lambda form: _distance(form, means))
    responses = tuple(
        _annotated(response, place, ranks[place], means, said) for place, response in enumerate(group.responses)
    )
    meta = {name: value for name, value in group.meta.items() if name not in ("annotations", "model_annotations")}
    meta |= {
        "annotations": _tables(people),
        "annotators": [{name: getattr(form, name) for name in _ORIGIN} for form in sorted_by_kind(forms)],
        "labels": {"by": "+".join(sorted({form.kind for form in people})), "forms": len(people)},
    }
    if models:
        meta["model_annotations"] = _tables(models)
    return replace(group, responses=responses, pairs=None, meta=meta)


def sorted_by_kind(forms: Sequence[Form]) -> list[Form]:
    """People first, then models, by name."""
    return sorted(forms, key=lambda form: (form.kind == "model", form.annotator))


def _annotated(
    response: Response,
    place: int,
    rank: int | None,
    means: Mapping[str, Sequence[float | None]],
    said: Sequence[Form],
) -> Response:
    scores = {name: value for name in DIMENSIONS if (value := means[name][place]) is not None}
    reasons = next((found for form in said if (found := _reasons(form, place))), {})
    critique = "\n".join(f"{name}: {text}" for name, text in reasons.items())
    if len(reasons) == 1:
        (critique,) = reasons.values()
    critiques = {"short": critique} if critique else {}
    return replace(response, rank=rank, scores=scores, reasons=reasons, critiques=critiques)


def _reasons(form: Form, place: int) -> dict[str, str]:
    found = {name: form.reasons[name][place].strip() for name in DIMENSIONS if name in form.reasons}
    return {name: text for name, text in found.items() if text}


def _means(forms: Sequence[Form], dimension: str) -> list[float | None]:
    columns = zip(*(form.scores[dimension] for form in forms if dimension in form.scores), strict=True)
    known = [[score for score in column if score is not None] for column in columns]
    means = [round(fmean(scores), 6) if scores else None for scores in known]
    return means or [None] * len(forms[0].ranks)


def _distance(form: Form, means: Mapping[str, Sequence[float | None]]) -> float:
    """Mean distance of a form's scores from the means; inf without scores."""
    apart = [
        abs(score - mean)
        for name, scores in form.scores.items()
        for score, mean in zip(scores, means[name], strict=True)
        if score is not None and mean is not None
    ]
    return fmean(apart) if apart else math.inf


def _tables(forms: Sequence[Form]) -> dict[str, list[list[Any]]]:
    """Name -> one list of K levels for each form, null where nothing was said; names that nobody used are left out."""
    size = len(forms[0].ranks)
    tables = {RANKING: [list(form.ranks) for form in forms]}
    tables |= {name: [list(form.scores.get(name, [None] * size)) for form in forms] for name in DIMENSIONS}
    return {name: rows for name, rows in tables.items() if any(level is not None for row in rows for level in row)}


def by_query(forms: Iterable[Form], excluded: Collection[str] = ()) -> dict[str, list[Form]]:
    """Key -> the forms of a query, without those of annotators who are excluded."""
    found: dict[str, list[Form]] = {}
    for form in forms:
        if form.annotator not in excluded:
            found.setdefault(form.key, []).append(form)
    return found
