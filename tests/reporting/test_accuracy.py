"""Ranking reports on groups small enough to do the arithmetic by hand."""

from __future__ import annotations

import pytest

from mmrlhf.reporting.accuracy import margin_statistics, ranking_tables, scored_groups, true_pairs
from mmrlhf.types import PreferenceGroup, Response


def group(key: str, texts: list[str], ranks: list[int | None], quality: list[int] | None) -> PreferenceGroup:
    responses = tuple(
        Response(text, rank=rank, critiques={"short": "good" if rank == 1 else "bad"})
        for text, rank in zip(texts, ranks, strict=True)
    )
    return PreferenceGroup(key, "?", responses, category=key, meta={} if quality is None else {"quality": quality})


# Annotators: a > b, a > c (2 pairs), and d > e. Truth: b > a = c (2 pairs); not known for d and e.
GROUPS = [
    group("first", ["aaa", "bb", "c"], [1, 2, 2], [1, 2, 1]),
    group("second", ["d", "ee"], [1, 2], None),
]
SCORES = [{"model": [2.0, 1.0, 3.0]}, {"model": [5.0, 1.0]}]


def test_true_pairs_put_the_better_response_first():
    assert true_pairs(GROUPS[0]) == ((1, 0), (1, 2))
    assert true_pairs(GROUPS[1]) is None
    assert true_pairs(group("odd", ["a", "b"], [1, 2], [1])) is None


def test_both_judges_and_all_scorers_by_hand():
    """Model: a > b right, a > c wrong, d > e right: 2 of 3; whole queries: 1 of 2. By truth b > a, b > c: 0 of 2.

    Longer wins: a > b and a > c right, d > e wrong: 2 of 3. By truth b > a wrong, b > c right: 1 of 2.
    """
    tables = ranking_tables(scored_groups(GROUPS, SCORES))
    assert list(tables["annotators"]) == ["model", "random", "longer wins"]
    model = tables["annotators"]["model"]
    assert model.acc.mean == pytest.approx(2 / 3) and model.acc_plus.mean == 0.5
    assert model.categories["second"].acc.mean == 1.0
    assert tables["annotators"]["longer wins"].acc.mean == pytest.approx(2 / 3)
    assert tables["truth"]["model"].acc.mean == 0.0
    assert tables["truth"]["longer wins"].acc.mean == 0.5
    assert tables["truth"]["model"].num_queries == 1


def test_critique_words_are_a_scorer_only_where_asked_for():
    tables = ranking_tables(scored_groups(GROUPS, SCORES, critique="short"))
    assert "critique words" in tables["annotators"]
    assert "critique words" not in ranking_tables(scored_groups(GROUPS, SCORES, critique="evidence"))["annotators"]


def test_a_scorer_that_lacks_a_query_is_reported_over_the_others():
    tables = ranking_tables(scored_groups(GROUPS, [{**SCORES[0], "given": [3.0, 2.0, 1.0]}, SCORES[1]]))
    assert tables["annotators"]["given"].num_pairs == 2 and tables["annotators"]["model"].num_pairs == 3


def test_margins_are_those_of_the_annotators_pairs():
    """a - b = 1, a - c = -1, d - e = 4."""
    found = margin_statistics(scored_groups(GROUPS, SCORES), "model")
    assert found is not None and found.num_pairs == 3 and found.mean == pytest.approx(4 / 3)
    assert found.median == 1.0 and found.share_negative == pytest.approx(1 / 3)
    assert margin_statistics([], "model") is None


def test_random_scores_stay_the_same_whatever_else_is_reported():
    alone = scored_groups(GROUPS[1:], SCORES[1:])[0].scores["random"]
    assert scored_groups(GROUPS, SCORES)[1].scores["random"] == alone
