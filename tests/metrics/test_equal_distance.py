"""Methods at one distance: the curve through a few points, and that the half that tunes does not measure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.metrics.equal_distance import Points, halves, lead_at, on_curve, quality_at

QUERIES = [f"0/query-{number}" for number in range(40)]


def flat(kl: list[float], quality: list[float]) -> Points:
    """Queries that all say the same."""
    return Points(QUERIES, np.tile(kl, (len(QUERIES), 1)), np.tile(quality, (len(QUERIES), 1)))


def test_lines_are_straight_over_the_root_and_end_at_the_furthest_point() -> None:
    kl, quality = np.array([0.0, 0.16, 0.04]), np.array([0.2, 0.5, 0.3])
    assert on_curve(kl, quality, 0.0) == pytest.approx(0.2)
    assert on_curve(kl, quality, 0.01) == pytest.approx(0.25), "half way to 0.2 on the root"
    assert on_curve(kl, quality, 0.04) == pytest.approx(0.3)
    assert on_curve(kl, quality, 0.09) == pytest.approx(0.4)
    assert on_curve(kl, quality, 0.16) == pytest.approx(0.5)
    assert math.isnan(on_curve(kl, quality, 0.17))


@given(
    st.lists(st.tuples(st.floats(0.001, 2), st.floats(0, 1)), min_size=1, max_size=4, unique_by=lambda at: at[0]),
    st.floats(0, 2),
)
def test_it_is_numpys_interpolation_of_the_sorted_points(points: list[tuple[float, float]], distance: float) -> None:
    kl, quality = (np.array([0.0, *(at[axis] for at in points)]) for axis in (0, 1))
    order = np.argsort(kl)
    expected = np.interp(np.sqrt(distance), np.sqrt(kl[order]), quality[order], right=np.nan)
    assert on_curve(kl, quality, distance) == pytest.approx(expected, nan_ok=True, abs=1e-9)


def test_two_points_at_one_place_do_not_divide_by_nothing() -> None:
    assert on_curve(np.array([0.0, 0.25, 0.25]), np.array([0.1, 0.3, 0.4]), 0.25) == pytest.approx(0.3)
    assert np.isfinite(on_curve(np.array([0.0, 0.25, 0.25, 1.0]), np.array([0.1, 0.3, 0.4, 0.5]), 0.3))


def test_one_half_tunes_and_the_other_measures() -> None:
    # the halves disagree on both: in half 0 KL is 1 with quality .4, in half 1 KL is 4 with quality .8
    half = halves(QUERIES)
    assert 10 < half.sum() < 30
    kl = np.stack([np.zeros(40), np.where(half == 0, 1.0, 4.0)], axis=1)
    quality = np.stack([np.zeros(40), np.where(half == 0, 0.4, 0.8)], axis=1)
    points = Points(QUERIES, kl, quality)
    # at KL 1: half 0 says "all the way", where half 1 has .8; half 1 says "half way", where half 0 has .2
    assert quality_at(points, 1.0).mean == pytest.approx((0.8 + 0.2) / 2)
    assert points.reach == 1.0
    assert math.isnan(quality_at(points, 1.5).mean)


def test_a_lead_is_taken_on_queries_that_both_have() -> None:
    one, other = flat([0, 0.2], [0.3, 0.6]), flat([0, 0.8], [0.3, 0.6])
    found = lead_at(one, other.of(QUERIES[5:]), 0.2)
    assert found.mean == pytest.approx(0.15) and found.low is None, "nothing differs from query to query"


def test_what_two_methods_share_cancels_and_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside, widths = 0, []
    for _ in range(200):
        shared = rng.normal(0, 0.3, (200, 1))
        names = [f"{rng.integers(1 << 30)}" for _ in range(200)]
        arms = []
        for lead in (0.05, 0.0):
            kl = np.array([0, 0.1, 0.4]) + rng.normal(0, [0, 0.1, 0.4], (200, 3))
            quality = 0.2 + np.array([0, 0.1, 0.2]) * (1 + lead / 0.15) + shared + rng.normal(0, 0.05, (200, 3))
            arms.append(Points(names, kl, quality))
        found = lead_at(*arms, 0.225)
        assert found.low is not None and found.high is not None
        # half way between the roots of .1 and .4: quality .2 + .15, the lead at it is .05
        inside += found.low <= 0.05 <= found.high
        widths.append(found.high - found.low)
    assert 180 <= inside <= 199
    assert np.mean(widths) < 0.06, "the spread that both share (.3) is not in it"


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="3 queries"):
        Points(["a", "b", "c"], np.zeros((2, 2)), np.zeros((2, 2)))
