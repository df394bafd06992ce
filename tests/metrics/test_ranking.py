"""ACC and ACC+ by the released definition, and the running accuracy of training."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.metrics.ranking import PairAccuracy, accuracy_difference, accuracy_report

PAIRS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def test_worked_example() -> None:
    """Query a: right and tied; b: right. ACC 2/3, ACC+ 1/2."""
    report = accuracy_report(["a", "a", "b"], [2, 1, 5], [1, 1, 0], ["x", "x", "y"])
    assert report["acc"]["mean"] == pytest.approx(2 / 3) and report["acc_plus"]["mean"] == 0.5
    assert (report["num_pairs"], report["num_queries"], report["num_ties"]) == (3, 2, 1)
    assert report["categories"]["x"]["acc"]["mean"] == 0.5 and report["categories"]["x"]["acc_plus"]["mean"] == 0
    assert report["categories"]["y"]["num_pairs"] == 1
    json.dumps(report)


@settings(max_examples=50, deadline=None)
@given(pairs=PAIRS)
def test_is_the_released_definition(pairs: list[tuple[str, int, int]]) -> None:
    keys, chosen, rejected = zip(*pairs, strict=True)
    by_query = defaultdict(list)
    for key, c, r in pairs:
        by_query[key].append(c > r)
    report = accuracy_report(keys, chosen, rejected)
    assert report["acc"]["mean"] == pytest.approx(sum(map(sum, by_query.values())) / len(pairs))
    assert report["acc_plus"]["mean"] == pytest.approx(np.mean([all(hits) for hits in by_query.values()]))
    turned = accuracy_report(keys, rejected, chosen)
    ties = report["num_ties"] / len(pairs)
    assert report["acc"]["mean"] + turned["acc"]["mean"] + ties == pytest.approx(1)
    moved = accuracy_report(keys, np.array(chosen) * 3.0 + 1, np.array(rejected) * 3.0 + 1)
    assert moved == report


def test_a_score_that_is_not_a_number_is_wrong() -> None:
    assert accuracy_report(["a", "b"], [np.nan, 1], [0, np.nan])["acc"]["mean"] == 0


def test_a_querys_category_is_its_first_pairs() -> None:
    report = accuracy_report(["a", "a"], [1, 1], [0, 2], ["x", "y"])
    assert list(report["categories"]) == ["x"] and report["categories"]["x"]["num_pairs"] == 2


def test_refused_arguments() -> None:
    with pytest.raises(ValueError, match="one pair each"):
        accuracy_report(["a"], [1, 2], [0, 0])
    with pytest.raises(ValueError, match="one category per pair"):
        accuracy_report(["a"], [1], [0], [])
    with pytest.raises(ValueError, match="P >= 1"):
        accuracy_report([], [], [])


def test_pair_accuracy_adds_up_over_batches() -> None:
    metric = PairAccuracy()
    metric.update(torch.tensor([1.0, -1.0, 0.0]))
    metric.update(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0]))
    metric.update(torch.zeros(0))
    assert metric.compute().item() == pytest.approx(2 / 4)
    metric.reset()
    metric.update(torch.tensor([1.0]))
    assert metric.compute().item() == 1.0


def test_pair_accuracy_of_swapped_pairs() -> None:
    logit = torch.randn(50)
    metric, turned = PairAccuracy(), PairAccuracy()
    metric.update(logit)
    turned.update(-logit)
    assert metric.compute().item() == pytest.approx(1 - turned.compute().item())


def test_pair_accuracy_without_pairs_is_not_a_number() -> None:
    metric = PairAccuracy()
    metric.update(torch.zeros(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute().isnan()


def test_pair_accuracy_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(P,\)"):
        PairAccuracy().update(torch.zeros(3), torch.zeros(3, 1))


@given(rows=st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_a_difference_is_that_of_the_two_reports(rows: list[tuple[str, bool, bool]]) -> None:
    keys, one, other = (list(column) for column in zip(*rows, strict=True))
    reports = [accuracy_report(keys, np.array(side, float), np.zeros(len(keys))) for side in (one, other)]
    found = accuracy_difference(keys, one, other)
    for name in ("acc", "acc_plus"):
        assert found[name]["mean"] == pytest.approx(reports[0][name]["mean"] - reports[1][name]["mean"])
    itself = accuracy_difference(keys, one, one)
    assert itself["acc"]["mean"] == itself["acc_plus"]["mean"] == 0.0
    if len(set(keys)) == 1:
        assert found["acc"]["low"] is found["acc"]["high"] is None


def test_one_query_has_no_interval_and_ten_of_ten_right_are_no_certainty() -> None:
    alone = accuracy_report(["a", "a", "b"], [1, 1, 1], [0, 0, 0], ["x", "x", "y"])["categories"]["x"]
    assert alone["acc"] == alone["acc_plus"] == {"mean": 1.0, "low": None, "high": None}
    ten = accuracy_report(list("abcdefghij"), np.ones(10), np.zeros(10))
    assert ten["acc"] == ten["acc_plus"] and ten["acc"]["low"] < 0.73 and ten["acc"]["high"] == 1.0


def test_paired_intervals_are_narrower_than_the_difference_of_two() -> None:
    """200 queries, two scorers that are right on the same ones but for five: the difference is known closely."""
    keys = [str(number) for number in range(200)]
    one = np.arange(200) % 3 > 0
    other = one.copy()
    other[:30:3] = True
    found = accuracy_difference(keys, one, other)["acc"]
    alone = accuracy_report(keys, one.astype(float), np.full(200, 0.5))["acc"]
    assert found["high"] - found["low"] < (alone["high"] - alone["low"]) / 2 and found["high"] < 0
