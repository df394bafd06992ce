"""Two models' results on the same documents: paired, over pictures, corrected for the size of the table.

A document counts where both models have a score of the same question; all others are counted by reason and enter
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mmrlhf.metrics.intervals import Interval, mean_interval, paired_difference
from mmrlhf.metrics.paired import (
    detectable,
    holm,
    mean_of_independent,
    planned_detectable,
    sign_flip_p,
    standard_error,
    standardised_difference,
)
from mmrlhf.suites.document_scores import Result
from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.suites import SCHEMA, Dimension, Paired, SuiteComparison

Pair = tuple[Result, Result]
ONLY_BEFORE, ONLY_AFTER = "only the first run has it", "only the second run has it"
OTHER = "another picture, prompt or right answer"


def compare(before: Sequence[Result], after: Sequence[Result]) -> SuiteComparison:
    """Every benchmark of two runs, and the dimensions' summaries; rows in the order of the first run."""
    found: dict[str, Paired] = {}
    uncompared: dict[str, str] = {}
    for task in dict.fromkeys(result.task for result in (*before, *after)):
        pairs, left_out = match(_of(before, task), _of(after, task))
        if pairs:
            found[task] = _paired(pairs, left_out)
        else:
            uncompared[task] = ", ".join(f"{count} x {reason}" for reason, count in left_out.items())
    adjusted = holm([row.p for row in found.values()])
    rows = {task: replace(row, p_holm=p) for (task, row), p in zip(found.items(), adjusted, strict=True)}
    return SuiteComparison(SCHEMA, rows, uncompared, _dimensions(rows), _together(list(rows.values())))


def pairs_by_task(before: Sequence[Result], after: Sequence[Result]) -> dict[str, list[Pair]]:
    """The pairs behind every row of the table."""
    tasks = dict.fromkeys(result.task for result in before)
    found = {task: match(_of(before, task), _of(after, task))[0] for task in tasks}
    return {task: pairs for task, pairs in found.items() if pairs}


def _of(results: Sequence[Result], task: str) -> dict[str, Result]:
    return {result.document: result for result in results if result.task == task}


def match(before: Mapping[str, Result], after: Mapping[str, Result]) -> tuple[list[Pair], dict[str, int]]:
    """Pairs of scored results of the same question, and the other documents counted by reason."""
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            reasons[ONLY_AFTER if old is None else ONLY_BEFORE] += 1
        elif old.digest != new.digest:
            reasons[OTHER] += 1
        elif old.score is None or new.score is None:
            reasons[old.reason or new.reason] += 1
        else:
            pairs.append((old, new))
    return pairs, dict(reasons)


def scores(results: Sequence[Result]) -> np.ndarray:
    """Scores (N,) of results that have one."""
    return np.array([result.score for result in results], dtype=np.float64)


def _paired(pairs: Sequence[Pair], left_out: Mapping[str, int]) -> Paired:
    old, new = ([pair[side] for pair in pairs] for side in (0, 1))
    first, second, pictures = scores(old), scores(new), [result.picture for result in old]
    clusters = len(set(pictures))
    difference = paired_difference(second, first, groups=pictures)
    error = standard_error(difference, clusters)
    p = sign_flip_p(second - first, pictures)
    return Paired(
        title=old[0].title,
        dimension=old[0].dimension,
        documents=len(pairs),
        pictures=clusters,
        left_out=dict(left_out),
        before=estimate(mean_interval(first, groups=pictures)),
        after=estimate(mean_interval(second, groups=pictures)),
        difference=estimate(difference),
        p=p,
        p_holm=p,
        fixed=int((second > first).sum()),
        broken=int((second < first).sum()),
        # where nothing changed there is no spread to measure: one document in ten is taken to change
        detectable=planned_detectable(clusters) if error is None else detectable(error),
        standardised=maybe(standardised_difference(first, second, groups=pictures)),
        strict_before=share([result.strict for result in old]),
        strict_after=share([result.strict for result in new]),
        strict=_strict(pairs),
        parsed_before=share([result.parsed for result in old]),
        parsed_after=share([result.parsed for result in new]),
        words_before=float(np.mean([result.words for result in old])),
        words_after=float(np.mean([result.words for result in new])),
    )


def _strict(pairs: Sequence[Pair]) -> Estimate | None:
    known = [(old.strict, new.strict, old.picture) for old, new in pairs]
    if any(old is None or new is None for old, new, _ in known):
        return None
    old, new, pictures = zip(*known, strict=True)
    return estimate(paired_difference(new, old, groups=pictures))


def share(values: Sequence[float | bool | None]) -> float | None:
    """The mean of values, None where one of them is not known."""
    return None if any(value is None for value in values) else float(np.mean([float(v or 0.0) for v in values]))


def estimate(found: Interval) -> Estimate:
    """An interval as a summary's number."""
    return Estimate(found.mean, found.low, found.high)


def maybe(found: Interval | None) -> Estimate | None:
    """The same where there may be none."""
    return None if found is None else estimate(found)


def _dimensions(rows: Mapping[str, Paired]) -> dict[str, Dimension]:
    found: dict[str, Dimension] = {}
    for name in dict.fromkeys(row.dimension for row in rows.values()):
        own = [row for row in rows.values() if row.dimension == name]
        found[name] = Dimension(len(own), _together(own))
    return found


def _together(rows: Sequence[Paired]) -> Estimate | None:
    """The mean of benchmarks' standardised differences; their documents are others, so that their errors add up."""
    known = [(Interval(*vars(row.standardised).values()), row.pictures) for row in rows if row.standardised]
    return maybe(mean_of_independent(known))
