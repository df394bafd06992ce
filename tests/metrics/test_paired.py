"""Two models on the same items: p, Holm, the smallest detectable difference, standardised differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from mmrlhf.metrics.intervals import Interval, paired_difference
from mmrlhf.metrics.paired import (
    detectable,
    holm,
    mean_of_independent,
    planned_detectable,
    sign_flip_p,
    standard_error,
    standardised_difference,
)

numbers = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


@given(numbers)
def test_few_clusters_are_tried_in_every_sign(values):
    """Against all 2^n signs, written out."""
    total = abs(sum(values))
    signs = list(itertools.product((1, -1), repeat=len(values)))
    expected = np.mean([abs(sum(s * v for s, v in zip(sign, values, strict=True))) >= total for sign in signs])
    assert sign_flip_p(values) == pytest.approx(float(expected))


def test_right_and_wrong_answers_are_mcnemar_exact():
    """12 fixed, 3 broken of 100: a binomial test of 15."""
    values = [1] * 12 + [-1] * 3 + [0] * 85
    assert sign_flip_p(values) == pytest.approx(binomtest(12, 15).pvalue) == pytest.approx(0.03515625)


def test_drawn_signs_agree_with_scipy():
    values = np.random.default_rng(3).normal(0.25, 1.0, 60)
    expected = permutation_test(
        (values, np.zeros(60)), lambda a, b: (a - b).sum(), permutation_type="samples", n_resamples=20_000, rng=1
    ).pvalue
    found = sign_flip_p(values)
    assert found == pytest.approx(float(expected), abs=0.012) and 0.001 < found < 0.2
    assert sign_flip_p(values) == found and sign_flip_p(np.zeros(5)) == 1.0


def test_a_picture_is_flipped_whole():
    """Ten documents of one picture that all got better are one observation, not ten."""
    assert sign_flip_p(np.ones(10)) == pytest.approx(2 / 2**10)
    assert sign_flip_p(np.ones(10), ["one"] * 10) == 1.0
    assert sign_flip_p(np.ones(10), list("aabbccddee")) == pytest.approx(2 / 2**5)


def test_a_true_null_is_rejected_as_often_as_its_level():
    """300 benchmarks of 40 pictures with two questions each and no effect: about 5% below .05, whatever pictures do."""
    rng = np.random.default_rng(0)
    pictures = [n // 2 for n in range(80)]
    below = [
        sign_flip_p(np.repeat(rng.choice([-1, 0, 0, 1], 40), 2) * rng.integers(1, 3, 80), pictures, draws=400) < 0.05
        for _ in range(300)
    ]
    assert 0.02 < np.mean(below) < 0.08


def test_holm_by_hand():
    """.01 x 4; .02 x 3; .03 x 2 stays below its neighbour's; .5."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_helps_and_keeps_the_order(values):
    adjusted = holm(values)
    assert all(1 >= a >= p for a, p in zip(adjusted, values, strict=True))
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(order))


def test_planned_sizes_are_those_of_the_formula():
    """2.8 * sqrt(.1 / n): 11.4 points at 60 documents, 2.8 at 1,000, .9 at 9,000; times 2 at 4 documents a picture."""
    found = [planned_detectable(n) for n in (60, 1000, 9000)]
    assert found == pytest.approx([0.114, 0.028, 0.0093], abs=5e-4)
    assert planned_detectable(1000, per_cluster=4) == pytest.approx(2 * planned_detectable(1000))


def test_an_effect_of_the_detectable_size_is_found_about_four_times_in_five():
    """A little less often: an exact test of few counts keeps below its level."""
    rng, n = np.random.default_rng(1), 300
    size = planned_detectable(n)
    rates = ((0.1 + size) / 2, (0.1 - size) / 2)
    found = [sign_flip_p(rng.choice([1, -1, 0], n, p=[*rates, 1 - sum(rates)])) < 0.05 for _ in range(400)]
    assert 0.68 < np.mean(found) < 0.84


def test_the_standard_error_is_that_of_the_interval():
    values = np.random.default_rng(5).normal(0, 1, 200)
    found = paired_difference(values, np.zeros(200))
    error = standard_error(found, 200)
    assert error == pytest.approx(values.std(ddof=1) / 200**0.5) and detectable(error) == pytest.approx(
        2.8016 * error, rel=1e-4
    )
    assert standard_error(Interval(1.0, None, None), 200) is None


@given(st.floats(0.1, 50), st.floats(-20, 20))
def test_standardised_differences_do_not_know_the_scale(scale, shift):
    rng = np.random.default_rng(2)
    old, new = rng.normal(0, 1, 40), rng.normal(0.5, 1, 40)
    plain = standardised_difference(old, new)
    other = standardised_difference(scale * old + shift, scale * new + shift)
    assert plain is not None and other is not None and list(plain) == pytest.approx(list(other), rel=1e-6)


def test_no_spread_has_no_standardised_difference():
    assert standardised_difference([1, 1], [1, 1]) is None


def test_the_mean_of_independent_numbers():
    """Two standard errors of .1 and .2: (.01 + .04)^.5 / 2 = .1118."""
    big = 10**6
    made = [Interval(mean, mean - 1.96 * e, mean + 1.96 * e) for mean, e in ((0.2, 0.1), (0.4, 0.2))]
    found = mean_of_independent([(each, big) for each in made])
    assert found is not None and found.low is not None
    assert found.mean == pytest.approx(0.3) and found.mean - found.low == pytest.approx(1.96 * 0.1118, rel=1e-3)
    assert mean_of_independent([]) is None
    assert mean_of_independent([(made[0], big), (Interval(1.0, None, None), 1)]) == Interval(0.6, None, None)
