"""How far annotations can be trusted: agreement, gold questions, each annotator over time, people against a model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from mmrlhf.annotation.consensus import RANKING
from mmrlhf.annotation.filled_forms import DIMENSIONS, Form
from mmrlhf.annotation.pair_orders import Ranks, orders, pair_agreement, reversed_share
from mmrlhf.metrics.agreement import rater_agreement
from mmrlhf.metrics.intervals import Interval, mean_interval
from mmrlhf.summaries.people import Agreement, Annotator, Confusion, Window
from mmrlhf.summaries.rankings import Estimate

WINDOWS = 6
_PER_WINDOW = 5  # queries with another's form that a window holds at least


def agreement(by_key: Mapping[str, Sequence[Form]]) -> dict[str, Agreement]:
    """Krippendorff's alpha and the mean weighted kappa of people, by dimension and of the ranking, over all queries."""
    people = {key: _people(forms) for key, forms in by_key.items()}
    names = sorted({form.annotator for forms in people.values() for form in forms})
    found = {}
    for dimension in (RANKING, *DIMENSIONS):
        tables = [_table(forms, dimension, names) for forms in people.values() if len(forms) > 1]
        known = [table for table in tables if (np.isfinite(table).sum(0) > 1).any()]
        if known:
            both = rater_agreement(known)
            found[dimension] = Agreement(_estimate(both.alpha), _estimate(both.kappa), len(known))
    return found


def annotators(
    by_key: Mapping[str, Sequence[Form]], gold: Mapping[str, Ranks], gold_forms: Sequence[Form]
) -> dict[str, Annotator]:
    """What each person did: forms, time, agreement with the others (also over time), and on gold questions.

    Args:
        gold: key -> the right ranking.
        gold_forms: forms of these queries.
    """
    everything = [form for forms in by_key.values() for form in _people(forms)]
    names = sorted({form.annotator for form in (*everything, *gold_forms) if form.kind != "model"})
    return {
        name: _annotator(name, by_key, gold, [form for form in gold_forms if form.annotator == name]) for name in names
    }


def disputed(by_key: Mapping[str, Sequence[Form]], limit: float) -> dict[str, float]:
    """Queries for an expert, the worst first: key -> the largest share of pairs that two annotators order oppositely.

    A query belongs to them from `limit` on, or where one annotator sees a problem and another none; not where an expert
    has decided already.
    """
    found = {}
    for key, forms in by_key.items():
        people = _people(forms)
        if any(form.kind == "expert" for form in people):
            continue
        pairs = itertools.combinations(people, 2)
        worst = max((reversed_share(one.ranks, other.ranks) for one, other in pairs), default=0.0)
        if (worst >= limit and worst > 0) or len({bool(form.problem) for form in people}) > 1:
            found[key] = worst
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def confusion(by_key: Mapping[str, Sequence[Form]], rankings: Mapping[str, Ranks]) -> dict[str, Confusion]:
    """Model -> how it orders pairs of answers against how people do.

    Args:
        rankings: key -> people's ranking.
    """
    counts: dict[str, np.ndarray] = {}
    agreed: dict[str, dict[str, list[float]]] = {}
    for key, ranking in rankings.items():
        for form in (form for form in by_key[key] if form.kind == "model"):
            table = counts.setdefault(form.annotator, np.zeros((2, 3), dtype=np.int64))
            theirs, own = orders(form.ranks), orders(ranking)
            for pair in itertools.combinations(range(len(ranking)), 2):
                if not np.isnan(theirs[pair] + own[pair]):
                    # seen from the answer that the model prefers; without one, people's side is the first answer's
                    same = own[pair] * (theirs[pair] or 1)
                    table[int(theirs[pair] == 0), int(1 - same)] += 1
            agreed.setdefault(form.annotator, {})[key] = pair_agreement(form.ranks, ranking)
    return {
        name: Confusion(counts[name].tolist(), _estimate(_grouped(agreed[name])), len(agreed[name])) for name in counts
    }


def _people(forms: Sequence[Form]) -> list[Form]:
    return [form for form in forms if form.kind != "model"]


def _table(forms: Sequence[Form], dimension: str, names: Sequence[str]) -> np.ndarray:
    """Levels (A, K) of one query, a row for each annotator of the set, so that kappa pairs the same two everywhere."""
    table = np.full((len(names), len(forms[0].ranks)), np.nan)
    for form in forms:
        levels = form.ranks if dimension == RANKING else form.scores.get(dimension, ())
        for place, level in enumerate(levels):
            table[names.index(form.annotator), place] = np.nan if level is None else level
    return table


def _annotator(
    name: str, by_key: Mapping[str, Sequence[Form]], gold: Mapping[str, Ranks], gold_forms: Sequence[Form]
) -> Annotator:
    own = {form.key: form for forms in by_key.values() for form in _people(forms) if form.annotator == name}
    shared = {
        key: [value for other in _people(by_key[key]) if other.annotator != name
              for value in pair_agreement(form.ranks, other.ranks)]
        for key, form in own.items()
    }  # fmt: skip
    shared = {key: values for key, values in shared.items() if values}
    right = {form.key: pair_agreement(form.ranks, gold[form.key]) for form in gold_forms}
    seconds = [form.seconds for form in own.values() if form.seconds is not None]
    return Annotator(
        forms=len(own), shared=len(shared), seconds=float(median(seconds)) if seconds else None,
        agreement=_estimate(_grouped(shared)), over_time=_windows(own, shared),
        gold_forms=len(gold_forms), gold=_estimate(_grouped(right)),
        problems=sum(bool(form.problem) for form in own.values()),
        experts=sum(form.kind == "expert" for form in own.values()),
    )  # fmt: skip


def _windows(own: Mapping[str, Form], shared: Mapping[str, list[float]]) -> list[Window]:
    """Agreement with the others in equally long stretches of an annotator's queries, in the order of time."""
    keys = sorted((key for key in shared if own[key].at is not None), key=lambda key: own[key].at or 0.0)
    number = min(WINDOWS, len(keys) // _PER_WINDOW)
    if number < 2:
        return []
    found = []
    for part in np.array_split(np.array(keys, dtype=object), number):
        estimate = _estimate(_grouped({key: shared[key] for key in part}))
        assert estimate is not None
        found.append(Window(float(own[part[0]].at or 0.0), estimate, len(part)))
    return found


def _grouped(values: Mapping[str, Sequence[float]]) -> Interval | None:
    """The mean over all pairs, with its interval over queries."""
    flat = [value for each in values.values() for value in each]
    groups = [key for key, each in values.items() for _ in each]
    return mean_interval(flat, groups=groups, most=1.0) if flat else None


def _estimate(found: Interval | None) -> Estimate | None:
    return None if found is None else Estimate(found.mean, found.low, found.high)
