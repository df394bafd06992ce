"""The page of a suite: table, dimensions, what was fixed and broken with pictures, and how safety moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.reporting import plots
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.plots import dot
from mmrlhf.reporting.sample_cards import picture_cards, read_pictures
from mmrlhf.suites.comparison import Pair
from mmrlhf.suites.documents import Document, DocumentStore
from mmrlhf.suites.own_benchmarks import SAFETY
from mmrlhf.suites.published import published
from mmrlhf.suites.table import comparison_rows, dimension_rows, source_rows
from mmrlhf.summaries.suites import SuiteComparison
from mmrlhf.text import one_line
from mmrlhf.types import PreferenceGroup, Response

PAGE = "benchmarks.html"
VERDICTS = ("does it", "declines", "neither")
_LONGEST = 600


def choose_examples(pairs: Mapping[str, Sequence[Pair]], number: int, seed: int) -> list[Pair]:
    """For each benchmark up to `number` answers that were fixed, and as many that were broken, drawn."""
    rng, chosen = np.random.default_rng(seed), list[Pair]()
    for own in pairs.values():
        for sign in (1, -1):
            found = [pair for pair in own if sign * ((pair[1].score or 0.0) - (pair[0].score or 0.0)) > 0]
            chosen += [found[int(place)] for place in rng.permutation(len(found))[:number]]
    return chosen


def example_card(pair: Pair, document: Document | None, store: DocumentStore) -> dict[str, Any]:
    """One example with its pictures; without them, where they cannot be read."""
    old, new = pair
    card: dict[str, Any] = {
        "benchmark": old.title, "prompt": old.prompt[:_LONGEST], "fixed": (new.score or 0.0) > (old.score or 0.0),
        "answers": [(name, one_line(each.answer, _LONGEST), each.score, each.verdict) for name, each in
                    (("before", old), ("after", new))],
        **picture_cards(None),
    }  # fmt: skip
    try:
        media = store.media(document) if document is not None else ()
        prompt = Conversation.about("", [each.slot for each in media])
        group = PreferenceGroup(key=old.document, prompt=prompt, responses=(Response(""),), media=media)
        return {**card, **picture_cards(read_pictures(group))}
    except DataError:  # a page shows what can be shown
        return card


def safety_matrix(pairs: Mapping[str, Sequence[Pair]]) -> list[dict[str, Any]]:
    """How verdicts moved, for each set: rows before, columns after; and where the release's word lists disagree."""
    found = []
    for own in pairs.values():
        if own[0][0].dimension != SAFETY or own[0][0].verdict not in VERDICTS:
            continue
        moves = Counter((old.verdict, new.verdict) for old, new in own)
        wrong = [sum(each.strict != each.score for each in side) for side in zip(*own, strict=True)]
        rows = [(old, [moves[old, new] for new in VERDICTS]) for old in VERDICTS]
        found.append({"title": own[0][0].title, "rows": rows, "documents": len(own), "released_wrong": wrong})
    return found


def render(
    title: str, found: SuiteComparison, pairs: Mapping[str, Sequence[Pair]], examples: Sequence[Mapping[str, Any]]
) -> str:
    """The page as HTML that needs no other file; all text is escaped."""
    dots = [
        dot(row.standardised, row.title, group=n % 6)
        for n, row in enumerate(found.benchmarks.values())
        if row.standardised is not None
    ]
    whole = [dot(each.standardised, name, strong=True) for name, each in found.dimensions.items() if each.standardised]
    label = "after minus before, in spreads of the scores"
    rows = comparison_rows(found)
    return (
        environment()
        .get_template("benchmarks.html.j2")
        .render(
            title=title,
            css=style(),
            heading=rows[0],
            rows=rows[1:],
            dimension_heading=dimension_rows(found)[0],
            dimensions=dimension_rows(found)[1:],
            dimension_plot=plots.intervals(whole, label=label, mark=0.0) if whole else None,
            benchmark_plot=plots.intervals(dots, label=label, mark=0.0) if dots else None,
            safety=safety_matrix(pairs),
            verdicts=VERDICTS,
            examples=examples,
            source_heading=source_rows(found)[0],
            sources=source_rows(found)[1:],
            paper=published(),
        )
    )
