"""Intervals over queries, against SciPy where it has them, and by hand where they end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmrlhf.metrics.intervals import (
    Interval,
    group_sums,
    jackknife_interval,
    mean_interval,
    paired_difference,
    paired_share_difference,
    share_interval,
)

HITS = st.lists(st.booleans(), min_size=2, max_size=60)


def ends(found: Interval) -> tuple[float, float]:
    assert found.low is not None and found.high is not None
    return found.low, found.high


@given(hits=HITS, level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_share_of_queries_has_wilsons_interval(hits: list[bool], level: float) -> None:
    exact = stats.binomtest(sum(hits), len(hits)).proportion_ci(level, method="wilson")
    for groups in (None, list(range(len(hits)))):
        assert ends(share_interval(hits, groups=groups, level=level)) == pytest.approx((exact.low, exact.high))


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_a_mean_of_queries_has_students_interval(values: list[float]) -> None:
    found = mean_interval(values)
    spread = stats.sem(values)
    if found.low is None:
        assert spread <= 1e-11 * abs(np.mean(values))
        return
    assert ends(found) == pytest.approx(stats.t.interval(0.95, len(values) - 1, np.mean(values), spread))


@settings(max_examples=50)
@given(rows=st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=5), min_size=2, max_size=12))
def test_a_mean_of_unequal_queries_has_the_jackknifes_interval(rows: list[list[float]]) -> None:
    groups = [number for number, row in enumerate(rows) for _ in row]
    found = mean_interval(np.concatenate(rows), groups=groups)
    left_out = [np.concatenate(rows[:i] + rows[i + 1 :]).mean() for i in range(len(rows))]
    quantile = stats.t.ppf(0.975, len(rows) - 1)
    about_mean = quantile * np.sqrt((len(rows) - 1) * np.mean((np.array(left_out) - found.mean) ** 2))
    if found.low is not None:
        assert ends(found) == pytest.approx((found.mean - about_mean, found.mean + about_mean), abs=1e-9)
    table = np.array([[sum(row), len(row)] for row in rows], dtype=float)
    exact = jackknife_interval(lambda part: [table[part]], len(table), lambda sums: sums[0][:, 0] / sums[0][:, 1])
    if exact.low is not None:
        half = quantile * np.sqrt((len(rows) - 1) * np.var(left_out))
        assert ends(exact) == pytest.approx((exact.mean - half, exact.mean + half), abs=1e-9)


def test_all_right_is_not_certainty() -> None:
    """10 of 10: Wilson's low end is 10 / (10 + 1.96^2) = .722; with ten pairs each, 10 / (10 + 2.26^2) = .662."""
    alone, many = share_interval([1] * 10), share_interval([1] * 100, groups=[i // 10 for i in range(100)])
    assert ends(alone) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert ends(many) == (pytest.approx(0.6615, abs=1e-4), 1.0)
    assert ends(share_interval([0] * 10)) == (0.0, pytest.approx(1 - 0.7225, abs=1e-4))


def test_a_figure_of_one_query_has_no_interval() -> None:
    for measure in (mean_interval, share_interval):
        assert measure([1.0, 0.0], groups=["a", "a"]) == Interval(0.5, None, None)
        assert measure([1.0]) == Interval(1.0, None, None)
    assert paired_difference([2.0], [1.0]) == Interval(1.0, None, None)
    assert paired_share_difference([1, 1], [0, 1], groups=["a", "a"]) == Interval(0.5, None, None)


def test_queries_that_all_say_the_same_have_a_mean_and_no_interval() -> None:
    assert mean_interval([0.1] * 7) == Interval(pytest.approx(0.1), None, None)
    assert mean_interval([1.0] * 11, groups=["big"] * 10 + ["small"]) == Interval(1.0, None, None)


@given(hits=st.integers(1, 60), pairs=st.integers(2, 61), queries=st.integers(2, 9))
def test_queries_with_one_share_each_are_as_many_pairs_whatever_the_rounding(
    hits: int, pairs: int, queries: int
) -> None:
    """15 of 22 right in two queries: Wilson's interval of 30 of 44 at Student's quantile, and not [.6818, .6818]."""
    hits = min(hits, pairs - 1)
    number, share, quantile = pairs * queries, hits / pairs, stats.t.ppf(0.975, queries - 1)
    right = ([1] * hits + [0] * (pairs - hits)) * queries
    found = share_interval(right, groups=[i // pairs for i in range(number)])
    middle = (share + quantile**2 / number / 2) / (1 + quantile**2 / number)
    half = (share * (1 - share) / number + quantile**2 / number**2 / 4) ** 0.5 * quantile / (1 + quantile**2 / number)
    assert ends(found) == pytest.approx((middle - half, middle + half))
    shuffled = paired_share_difference(right, right[::-1], groups=[i // pairs for i in range(number)])
    assert shuffled.mean == pytest.approx(0) and ends(shuffled)[0] < -0.01 and ends(shuffled)[1] > 0.01


def test_the_same_numbers_in_another_order_are_the_same() -> None:
    """.1 + .2 + .3 and .3 + .2 + .1 differ in the last place, about 0 by as much as their mean does."""
    up, down = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert sum(up) != sum(down)
    for values in ([*up, *down], [*up, -0.6, *down, -0.6], [0.1, 0.2, -0.3, -0.3, 0.2, 0.1]):
        groups = [2 * i // len(values) for i in range(len(values))]
        assert mean_interval(values, groups=groups).low is None


def test_two_of_the_same_share_by_hand() -> None:
    """t = 12.706, t^2 / 44 = 3.669: (.682 + 1.835 -+ 12.706 sqrt(.00493 + .02085)) / 4.669."""
    found = share_interval(([1] * 15 + [0] * 7) * 2, groups=[0] * 22 + [1] * 22)
    assert ends(found) == pytest.approx((0.102, 0.976), abs=1e-3)


def test_grouping_widens_the_interval_of_values_that_go_together() -> None:
    values = np.repeat(np.random.default_rng(1).standard_normal(40), 10)
    groups = np.repeat(np.arange(40), 10).tolist()
    for alone, together in (
        (mean_interval(values), mean_interval(values, groups=groups)),
        (share_interval(values > 0), share_interval(values > 0, groups=groups)),
    ):
        assert together.mean == pytest.approx(alone.mean)
        assert np.diff(ends(together)) > 2 * np.diff(ends(alone))


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=40),
)
def test_laws_of_shares_and_their_differences(rows: list[tuple[int, bool, bool]]) -> None:
    """Ends hold the number and lie in its range; swapping mirrors."""
    groups, one, other = (list(column) for column in zip(*rows, strict=True))
    found, turned = share_interval(one, groups=groups), share_interval([not hit for hit in one], groups=groups)
    gap, back = paired_share_difference(one, other, groups=groups), paired_share_difference(other, one, groups=groups)
    assert gap.mean == pytest.approx(-back.mean)
    if len(set(groups)) == 1:
        assert found.low is found.high is gap.low is gap.high is None
        return
    assert 0 <= ends(found)[0] <= found.mean <= ends(found)[1] <= 1
    assert ends(turned) == pytest.approx((1 - ends(found)[1], 1 - ends(found)[0]))
    assert -1 <= ends(gap)[0] <= gap.mean + 1e-9 and gap.mean - 1e-9 <= ends(gap)[1] <= 1
    assert ends(back) == pytest.approx((-ends(gap)[1], -ends(gap)[0]))


def test_newcombes_published_example() -> None:
    """Newcombe 1998 (paired), table II (a): 36 both, 12 first only, 2 second only, 0 neither gives .0569 to .3404."""
    one = [1] * 36 + [1] * 12 + [0] * 2
    other = [1] * 36 + [0] * 12 + [1] * 2
    found = paired_share_difference(one, other)
    assert found.mean == pytest.approx(0.2) and ends(found) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_groups_of_different_sizes_weigh_by_size() -> None:
    assert mean_interval([1.0, 1.0, 1.0, 0.0], groups=["a", "a", "a", "b"]).mean == 0.75


def test_group_labels_and_order_do_not_matter() -> None:
    sums, counts = group_sums(np.array([1.0, 2.0, 3.0]), ["b", "a", "b"])
    assert sums.tolist() == [4, 2] and counts.tolist() == [2, 1]


def test_difference_cancels_what_both_share() -> None:
    shared = np.random.default_rng(2).standard_normal(50) * 100
    noise, groups = np.repeat(np.random.default_rng(3).standard_normal(5), 10), np.repeat(np.arange(5), 10).tolist()
    grouped = paired_difference(shared + noise, shared, groups=groups)
    assert grouped.mean == pytest.approx(noise.mean())
    assert ends(grouped) == pytest.approx(ends(mean_interval(noise, groups=groups)))


def test_blocks_do_not_change_a_jackknife(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).random((30, 4))
    whole = jackknife_interval(lambda part: [table[part]], len(table), lambda sums: sums[0].max(axis=1))
    monkeypatch.setattr("mmrlhf.metrics.intervals._BLOCK", 9)
    assert jackknife_interval(lambda part: [table[part]], len(table), lambda sums: sums[0].max(axis=1)) == whole


def test_refused_arguments() -> None:
    with pytest.raises(ValueError, match="N >= 1"):
        mean_interval([])
    with pytest.raises(ValueError, match="one group per value"):
        share_interval([1.0, 0.0], groups=["a"])
    with pytest.raises(ValueError, match="level"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0], [1.0, 2.0])
