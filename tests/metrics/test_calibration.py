"""Calibration of pair probabilities: known temperatures, bins that add up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import spearmanr
from torchmetrics.functional.classification import binary_calibration_error

from mmrlhf.metrics.calibration import (
    accuracy_by_margin,
    brier_score,
    calibration_report,
    cross_fit_temperature,
    error_of_chance,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    rank_correlation,
    reliability_bins,
    show_in_both_orders,
)
from mmrlhf.metrics.intervals import mean_interval


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
    assert report["ece_at_temperature"]["mean"] < 0.02
    assert report["ece"]["mean"] == pytest.approx(0, abs=0.02) if scale == 1 else report["ece"]["mean"] > 0.05
    json.dumps(report, allow_nan=False)


PAIRS = st.lists(st.floats(-50, 50), min_size=1, max_size=50)


@settings(max_examples=50, deadline=None)
@given(gaps=PAIRS, num_bins=st.integers(1, 20))
def test_bins_hold_every_pair_in_both_orders(gaps: list[float], num_bins: int) -> None:
    shown = show_in_both_orders(gaps)
    bins = reliability_bins(*shown, num_bins=num_bins)
    assert sum(found.count for found in bins) == 2 * len(gaps)
    for found in bins:
        if found.count:
            assert found.low - 1e-9 <= found.confidence <= found.high + 1e-9 and 0 <= found.accuracy <= 1
    error = expected_calibration_error(gaps, num_bins=num_bins)
    filled = [found for found in bins if found.count]
    by_hand = sum(found.count * abs(found.accuracy - found.confidence) for found in filled) / (2 * len(gaps))
    assert error == pytest.approx(by_hand, abs=1e-12) and 0 <= error <= 1


# not on the edges of bins, which belong to either one
INSIDE = st.builds(lambda place, share: float(logit((place + share) / 10)), st.integers(0, 9), st.floats(0.01, 0.99))


@given(gaps=st.lists(INSIDE, min_size=2, max_size=60))
def test_the_error_is_torchmetrics_error_of_both_orders(gaps: list[float]) -> None:
    logits, outcomes = (torch.tensor(side) for side in show_in_both_orders(gaps))
    theirs = binary_calibration_error(logits.sigmoid(), outcomes.long(), n_bins=10, norm="l1")
    assert expected_calibration_error(gaps) == pytest.approx(float(theirs), abs=1e-6)


@given(gaps=PAIRS)
def test_no_order_and_no_chance_enters(gaps: list[float]) -> None:
    """Turning the list of pairs round or showing them the other way round changes nothing."""
    logits, outcomes = show_in_both_orders(gaps)
    assert np.array_equal(np.where(outcomes, logits, -logits), np.tile(np.asarray(gaps, dtype=float), 2))
    error = expected_calibration_error(gaps)
    assert expected_calibration_error(gaps[::-1]) == pytest.approx(error)


def test_a_perfect_scorer_at_benchmark_size() -> None:
    """170 pairs: .053 in both orders, where one random order shows .075; and the error of chance says so."""
    found = [calibration_report(calibrated_gaps(170, seed)) for seed in range(60)]
    shown, chance = (
        np.mean(side) for side in zip(*((f["ece"]["mean"], f["ece_of_chance"]) for f in found), strict=True)
    )
    assert shown == pytest.approx(0.053, abs=0.006) and chance == pytest.approx(shown, abs=0.006)


def test_ties_show_no_error_and_none_by_chance() -> None:
    """Both orders of a tie are in the middle bin, once right and once wrong: what they expect, whatever happens."""
    assert expected_calibration_error([0.0] * 20) == error_of_chance([0.0] * 20) == 0
    # three bins: the middle one holds both orders of a pair up to a probability of 2/3
    assert expected_calibration_error([0.5, 0.5], num_bins=3) == pytest.approx(0)
    assert error_of_chance([0.5, 0.5], num_bins=3) == pytest.approx(0)


@given(gaps=st.lists(st.floats(-60, 60), min_size=2, max_size=20))
def test_losses_have_intervals_of_losses_and_the_error_none(gaps: list[float]) -> None:
    """Two pairs of gaps 0 and 9: log loss .347, and Student's interval of the mean would begin at -4."""
    report = calibration_report(gaps)
    for end in ("", "_at_temperature"):
        for name, most in (("nll", np.inf), ("brier", 1.0)):
            found = report[f"{name}{end}"]
            if found["low"] is not None:
                assert 0 <= found["low"] <= found["mean"] <= found["high"] <= most
        assert report[f"ece{end}"]["low"] is report[f"ece{end}"]["high"] is None


def test_an_interval_of_losses_by_hand() -> None:
    """Mean m = .5, half h = 12.706 * sqrt(.02) / sqrt 2 = 1.27: m exp(-+ h / m); of 2, m is a quarter, odds 1/3."""
    alone, bounded = (mean_interval([0.4, 0.6], most=most) for most in (np.inf, 2.0))
    assert alone == pytest.approx((0.5, 0.5 * np.exp(-2.5412), 0.5 * np.exp(2.5412)), rel=1e-3)
    odds = [np.exp(sign * 2.5412 / 0.75) / 3 for sign in (-1, 1)]
    assert bounded == pytest.approx((0.5, *(2 * found / (1 + found) for found in odds)), rel=1e-3)


def test_a_scorer_that_is_sure_and_half_right_is_far_off() -> None:
    gaps = np.tile([50.0, -50.0], 20)
    assert expected_calibration_error(gaps) == pytest.approx(0.5)
    assert log_loss(gaps).mean == pytest.approx(25.0) and brier_score(gaps).mean == pytest.approx(0.5)


@given(gaps=st.lists(st.floats(-8, 8), min_size=2, max_size=40))
def test_log_loss_and_brier_are_torch_s(gaps: list[float]) -> None:
    logits, outcomes = (torch.tensor(side) for side in show_in_both_orders(gaps))
    nll = torch.nn.functional.binary_cross_entropy_with_logits(logits, outcomes.double())
    assert log_loss(gaps).mean == pytest.approx(float(nll), abs=1e-9)
    assert brier_score(gaps).mean == pytest.approx(float((logits.sigmoid() - outcomes.double()).square().mean()))


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


@pytest.mark.parametrize("size", [1e-8, 1.0, 40.0, 1e6])
def test_temperature_is_a_bound_at_any_scale(size: float) -> None:
    """Also where all likelihoods are 1, or 1/2, to the last digit."""
    for right in ([1.0, 1.0], [1.0, 3.0], [0.0, 1.0]):
        assert fit_temperature([size * gap for gap in right]) == pytest.approx(1e-3)
    for wrong in ([-1.0, -3.0], [1.0, -1.0], [0.5, 0.5, -1.5], [0.0, 0.0]):
        assert fit_temperature([size * gap for gap in wrong]) == pytest.approx(1e3)
    if size == 1.0:
        assert 0.1 < fit_temperature([-1.0, -1.0, 3.0]) < 100, "most are wrong, but by less"


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="P >= 1"):
        calibration_report([])
