"""A closer look at a scorer, on queries small enough to do by hand."""

from __future__ import annotations

import json

import pytest

from mmrlhf.reporting.reward_details import judge_report
from mmrlhf.summaries.rankings import Surprise, Verdicts
from mmrlhf.types import PreferenceGroup, Response


def group(key: str, category: str, ranks: list[int | None]) -> PreferenceGroup:
    responses = tuple(Response("x" * (place + 1), rank=rank) for place, rank in enumerate(ranks))
    return PreferenceGroup(key, "?", responses, category=category)


GROUPS = [group("one", "long", [1, 2, 3]), group("two", "short", [2, 1]), group("three", "short", [1, 1])]
SCORES = [[3.0, 1.0, 1.0], [5.0, 1.0], [0.0, 0.0]]


def test_by_hand():
    """one: 3 > 1 twice, and a tie; two: the worse one is ahead by 4; three has no pair."""
    report = judge_report(GROUPS, SCORES)
    assert report is not None
    json.dumps(report.to_json(), allow_nan=False)
    assert report.verdicts["long"] == Verdicts(2, 1, 0, pytest.approx(4 / 3))
    assert report.verdicts["short"].wrong == 1
    assert report.surprises == [Surprise("two", "short", 1, 0, -4.0)]
    assert report.ranks["long"] == [[1, 0, 0], [0, 1, 0], [0, 1, 0]], "equal scores share the second place"
    assert report.ranks["short"] == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert report.ranks["all"] == [[3, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert sum(sum(counts) for counts in report.margins.counts.values()) == 4
    assert report.calibration.num_pairs == 4 and sum(part.count for part in report.by_margin) == 4
    assert (report.length.correlation_within_queries or 0) < 0


def test_without_pairs_there_is_nothing_to_report():
    assert judge_report([group("none", "long", [1, 1])], [[1.0, 2.0]]) is None


def test_a_surprise_is_the_worst_pair_of_its_query():
    found = judge_report([group("one", "long", [1, 2, 3])], [[0.0, 1.0, 5.0]])
    assert found is not None and [pair.margin for pair in found.surprises] == [-5.0]


def test_equal_scores_everywhere_are_no_error():
    found = judge_report(GROUPS, [[0.0] * len(one.responses) for one in GROUPS])
    assert found is not None and found.length.correlation is None and not found.surprises
    json.dumps(found.to_json(), allow_nan=False)
