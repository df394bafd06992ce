"""Calibration of pair probabilities: known temperatures, bins that add up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import spearmanr

from mmrlhf.metrics.calibration import (
    accuracy_by_margin,
    calibration_report,
    cross_fit_temperature,
    expected_calibration_error,
    fit_temperature,
    rank_correlation,
    reliability_bins,
    show_in_random_order,
)


def calibrated_gaps(num_pairs: int, seed: int = 0) -> np.ndarray:
    """Gaps whose sign is positive with probability sigmoid(|gap|)."""
    draw = np.random.default_rng(seed)
    size = draw.gamma(2.0, 1.0, num_pairs)
    return np.where(draw.random(num_pairs) < expit(size), size, -size)


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_temperature_undoes_a_scale(scale: float) -> None:
    gaps = calibrated_gaps(20_000) * scale
    assert fit_temperature(gaps) == pytest.approx(scale, rel=0.05)
    report = calibration_report(gaps)
    assert report["ece_at_temperature"] < 0.02
    assert report["ece"] == pytest.approx(0, abs=0.02) if scale == 1 else report["ece"] > 0.05
    json.dumps(report, allow_nan=False)


PAIRS = st.lists(st.floats(-50, 50), min_size=1, max_size=50)


@settings(max_examples=50, deadline=None)
@given(gaps=PAIRS, num_bins=st.integers(1, 20), seed=st.integers(0, 3))
def test_bins_hold_every_pair_once(gaps: list[float], num_bins: int, seed: int) -> None:
    shown = show_in_random_order(gaps, seed=seed)
    bins = reliability_bins(*shown, num_bins=num_bins)
    assert sum(found.count for found in bins) == len(gaps)
    for found in bins:
        if found.count:
            assert found.low - 1e-9 <= found.confidence <= found.high + 1e-9 and 0 <= found.accuracy <= 1
    assert 0 <= expected_calibration_error(*shown, num_bins=num_bins) <= 1


def test_worked_example() -> None:
    """Two sure and right, two sure and wrong: sure either way, and half of it comes true in each end bin."""
    logits, outcomes = np.array([50.0, 50.0, -50.0, -50.0]), np.array([True, False, True, False])
    assert expected_calibration_error(logits, outcomes) == pytest.approx(0.5)
    assert [found.count for found in reliability_bins(logits, outcomes)] == [2, *[0] * 8, 2]


@given(gaps=PAIRS, seed=st.integers(0, 3))
def test_the_order_hides_which_one_is_chosen_and_nothing_else(gaps: list[float], seed: int) -> None:
    logits, outcomes = show_in_random_order(gaps, seed=seed)
    assert np.array_equal(np.where(outcomes, logits, -logits), np.asarray(gaps, dtype=float))


def test_a_scorer_that_prefers_what_is_shown_first_is_not_called_calibrated() -> None:
    """With the chosen one always first, sure and right by position alone would pass; in random order it is not."""
    logits, outcomes = show_in_random_order(np.full(4000, 3.0))
    assert 0.45 < outcomes.mean() < 0.55
    assert expected_calibration_error(np.full(4000, 3.0), outcomes) > 0.4
    assert expected_calibration_error(logits, outcomes) == pytest.approx(1 - expit(3.0), abs=1e-9)


def test_the_temperature_of_a_half_comes_from_the_other() -> None:
    """Two queries of one pair each: both temperatures are the other's, so a right pair is stretched by a wrong one."""
    scaled = cross_fit_temperature([2.0, -1.0], ["a", "b"])
    assert 0 < scaled[0] < 0.01 and scaled[1] < -100
    together = cross_fit_temperature([2.0, -1.0], ["a", "a"])
    assert together == pytest.approx(np.array([2.0, -1.0]) / fit_temperature([2.0, -1.0]))


def test_accuracy_by_margin_by_hand() -> None:
    """Margins 1, 2 (one right), 8, 9 (both right), in two bins."""
    small, large = accuracy_by_margin([1.0, -2.0, 9.0, 8.0], num_bins=2)
    assert (small["low"], small["high"], small["count"], small["accuracy"]["mean"]) == (1.0, 2.0, 2, 0.5)
    assert (large["margin"], large["count"], large["accuracy"]["mean"]) == (8.5, 2, 1.0)


@given(gaps=PAIRS, num_bins=st.integers(1, 9))
def test_margin_bins_hold_every_pair_once_in_order(gaps: list[float], num_bins: int) -> None:
    bins = accuracy_by_margin(gaps, num_bins=num_bins)
    assert sum(found["count"] for found in bins) == len(gaps) and len(bins) <= num_bins
    assert all(one["high"] <= two["low"] for one, two in zip(bins, bins[1:], strict=False))
    hits = sum(round(found["accuracy"]["mean"] * found["count"]) for found in bins)
    assert hits == sum(gap > 0 for gap in gaps)


@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlation_is_scipys(rows: list[tuple[int, int]]) -> None:
    a, b = (np.array(side) for side in zip(*rows, strict=True))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(rank_correlation(a, b))
    else:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_within_queries_the_queries_own_level_does_not_count() -> None:
    """Longer queries score higher, but within each the shorter answer does."""
    lengths, scores, groups = [1, 2, 11, 12], [1.0, 0.0, 11.0, 10.0], ["a", "a", "b", "b"]
    assert rank_correlation(lengths, scores) > 0 and rank_correlation(lengths, scores, groups) == pytest.approx(-1)


def test_temperature_stays_in_its_bounds() -> None:
    assert fit_temperature([1.0, 2.0]) == pytest.approx(1e-3, rel=0.01)
    assert fit_temperature([-1.0, -2.0]) == pytest.approx(1e3, rel=0.01)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="P >= 1"):
        calibration_report([])
