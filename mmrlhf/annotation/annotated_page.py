"""The page of annotated queries: agreement, each annotator, gold questions, disputes, people against a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmrlhf.annotation.filled_forms import Form
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.plots import SERIES, Interval, dot, intervals, new_axes, short_name, styled, to_svg
from mmrlhf.reporting.sample_cards import response_letter
from mmrlhf.shards.index import Index
from mmrlhf.summaries.people import AnnotatedSummary, Annotator

PAGE = "report.html"
_DISPUTED, _LONGEST = 12, 400
MODEL_ROWS, PEOPLE_COLUMNS = (
    ("model prefers one", "model sees no difference"),
    ("people agree", "no difference", "reverse"),
)


def annotated_page(
    summary: AnnotatedSummary, queue: Mapping[str, float], by_key: Mapping[str, Sequence[Form]], index: Index
) -> str:
    """The page as HTML that needs no other file.

    Args:
        queue: disputed queries, the worst first.
        by_key: the forms of each query.
        index: the queries.
    """
    return (
        environment()
        .get_template("annotated.html.j2")
        .render(
            css=style(), summary=summary, agreement=_agreement(summary), over_time=_over_time(summary.annotators),
            trust=_trust(summary.annotators), disputed=_disputed(queue, by_key, index), dimensions=_dimensions(summary),
            model_rows=MODEL_ROWS, people_columns=PEOPLE_COLUMNS,
        )
    )  # fmt: skip


def _agreement(summary: AnnotatedSummary) -> Markup | None:
    rows = [
        dot(found, f"{name}, {measure}", group=group)
        for name, each in summary.agreement.items()
        for group, (measure, found) in enumerate((("alpha", each.alpha), ("kappa", each.kappa)))
        if found is not None
    ]
    return intervals(rows, label="agreement of people beyond chance") if rows else None


def _dimensions(summary: AnnotatedSummary) -> list[dict[str, Any]]:
    return [
        {"name": name, "queries": each.queries,
         "alpha": dot(each.alpha) if each.alpha else None, "kappa": dot(each.kappa) if each.kappa else None}
        for name, each in summary.agreement.items()
    ]  # fmt: skip


def _trust(annotators: Mapping[str, Annotator]) -> list[dict[str, Any]]:
    """A row for each annotator, the least trusted first."""
    rows = [
        {"name": name, "facts": each, "agreement": dot(each.agreement) if each.agreement else None,
         "gold": dot(each.gold) if each.gold else None}
        for name, each in annotators.items()
    ]  # fmt: skip

    def trust(row: Mapping[str, Any]) -> float:
        known: list[Interval] = [found for found in (row["gold"], row["agreement"]) if found is not None]
        return known[0].value if known else 1.0

    return sorted(rows, key=lambda row: (trust(row), row["name"]))


@styled
def _over_time(annotators: Mapping[str, Annotator]) -> Markup | None:
    """Each annotator's agreement with the others, stretch by stretch."""
    known = [(name, each.over_time) for name, each in annotators.items() if each.over_time]
    known = sorted(known, key=lambda item: -sum(window.queries for window in item[1]))[: len(SERIES)]
    if not known:
        return None
    figure, axes = new_axes(5.2, 2.8)
    for colour, (name, windows) in zip(SERIES, known, strict=False):
        places = range(1, len(windows) + 1)
        axes.plot(places, [w.agreement.mean for w in windows], "o-", color=colour, label=short_name(name))
        ends = [(w.agreement.low, w.agreement.high) for w in windows]
        if all(low is not None and high is not None for low, high in ends):
            axes.fill_between(places, [low or 0.0 for low, _ in ends], [high or 0.0 for _, high in ends], color=colour,
                              alpha=0.12, linewidth=0)  # fmt: skip
    axes.set_xticks(range(1, max(len(windows) for _, windows in known) + 1))
    axes.set_xlabel("stretch of an annotator's queries, in the order of time")
    axes.set_ylabel("pairs ordered as others do")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return to_svg(figure, "agreement of annotators with others over time")


def _disputed(queue: Mapping[str, float], by_key: Mapping[str, Sequence[Form]], index: Index) -> list[dict[str, Any]]:
    """The worst disputes: question, answers, and every annotator's ranks."""
    wanted = dict(list(queue.items())[:_DISPUTED])
    rows = {str(key): row for row, key in enumerate(index.column("key")) if key in wanted}
    found = []
    for key, share in wanted.items():
        group = index.read(rows[key], media=False)
        forms = [form for form in by_key[key] if form.kind != "model"]
        found.append(
            {
                "key": key, "share": share, "question": _short(group.prompt.transcript),
                "names": [form.annotator for form in forms], "problems": [form.problem for form in forms],
                "answers": [
                    {"letter": response_letter(place), "text": _short(response.text),
                     "ranks": [form.ranks[place] for form in forms]}
                    for place, response in enumerate(group.responses)
                ],
            }
        )  # fmt: skip
    return found


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
