"""KL estimators against the exact divergence, and a change query by query."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.metrics.intervals import mean_interval
from mmrlhf.metrics.policy import change, k3_estimates, log_ratios


def test_both_estimators_find_the_exact_divergence() -> None:
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    exact = float((policy * np.log(policy / reference)).sum())
    drawn = np.random.default_rng(0).choice(3, 20_000, p=policy)
    k1 = log_ratios(np.log(policy)[drawn], np.log(reference)[drawn])
    widths = []
    for values in (k1, k3_estimates(k1)):
        found = mean_interval(values)
        assert found.low is not None and found.high is not None and found.low < exact < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]


@given(ratios=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_k3_is_never_negative_and_always_a_number(ratios: list[float]) -> None:
    found = k3_estimates(ratios)
    assert (found >= 0).all() and np.isfinite(found).all()


def test_an_unchanged_policy_has_no_divergence() -> None:
    ratios = log_ratios([-5.0, -7.0], [-5.0, -7.0])
    assert ratios.tolist() == k3_estimates(ratios).tolist() == [0.0, 0.0]
    assert k3_estimates([]).tolist() == []


def test_a_change_is_paired() -> None:
    """Ten queries of two answers, all up by .2 and .4, but for one query that falls by 1 in both."""
    before = np.repeat(np.arange(10) / 10, 2)
    after = before + np.tile([0.2, 0.4], 10)
    after[:2] = before[:2] - 1
    found = change(before, after, np.repeat(np.arange(10), 2).tolist())
    assert found.mean.mean == pytest.approx((9 * 0.3 - 1) / 10)
    assert (found.better, found.worse, found.num_queries) == (0.9, 0.1, 10)


def test_a_query_that_only_turned_its_answers_round_neither_gained_nor_lost() -> None:
    """.4 - .1, .1 - .2 and .2 - .4 add up to 2.8e-17."""
    found = change([0.1, 0.2, 0.4] * 2, [0.4, 0.1, 0.2] * 2, ["a"] * 3 + ["b"] * 3)
    assert (0.4 - 0.1) + (0.1 - 0.2) + (0.2 - 0.4) > 0
    assert (found.better, found.worse, found.mean.low) == (0.0, 0.0, None)


def test_refused_arguments() -> None:
    with pytest.raises(ValueError, match="of one length"):
        log_ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="same items"):
        change([1.0], [1.0, 2.0], ["a"])
