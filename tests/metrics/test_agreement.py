"""Agreement coefficients against published and hand-computed values."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_cohen_kappa

from mmrlhf.metrics.agreement import agreement_between, rater_agreement

NAN = np.nan


def krippendorff_alpha(table, level="ordinal") -> float:
    """Alpha of one table (raters, items), cut into a query for every item; nan where nothing can disagree."""
    columns = np.asarray(table, dtype=float).T
    found = rater_agreement([column[:, None] for column in columns], level=level).alpha
    return NAN if found is None else found.mean


def weighted_kappa(a, b) -> float:
    """Quadratic kappa of two raters' levels (N,) each, in one query."""
    found = agreement_between([np.asarray(a)[None]], [np.asarray(b)[None]])
    return NAN if found is None else found.mean


# The example of Krippendorff 2011, section C: four observers, twelve units, missing values.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level, published: float) -> None:
    assert krippendorff_alpha(OBSERVERS, level=level) == pytest.approx(published, abs=0.001)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_limits(level) -> None:
    ratings = np.random.default_rng(0).integers(1, 6, 4000)
    assert krippendorff_alpha([ratings, ratings], level=level) == pytest.approx(1)
    other = np.random.default_rng(1).permutation(ratings)
    assert krippendorff_alpha([ratings, other], level=level) == pytest.approx(0, abs=0.05)
    assert np.isnan(krippendorff_alpha([[1, 1], [1, 1]], level=level))
    assert np.isnan(krippendorff_alpha([[1, NAN], [NAN, 2]], level=level))


def test_alpha_ignores_the_order_of_raters_and_ordinal_the_spacing() -> None:
    table = np.array(OBSERVERS)
    assert krippendorff_alpha(table[::-1]) == pytest.approx(krippendorff_alpha(table))
    assert krippendorff_alpha(table**3, level="ordinal") == pytest.approx(krippendorff_alpha(table, level="ordinal"))


def test_kappa_by_hand() -> None:
    """a = 1 1 2 3, b = 1 2 2 3, quadratic: observed 1/4; expected with shares (.5 .25 .25) and (.25 .5 .25):
    .5*.5 + .5*.25*4 + .25*.25 + .25*.25 + .25*.25*4 + .25*.5 = 1.25; kappa = 1 - .25/1.25 = .8."""
    assert weighted_kappa([1, 1, 2, 3], [1, 2, 2, 3]) == pytest.approx(0.8)


def test_kappa_limits() -> None:
    ratings = np.random.default_rng(0).integers(1, 6, 4000)
    other = np.random.default_rng(1).permutation(ratings)
    assert weighted_kappa(ratings, ratings) == 1
    assert weighted_kappa(ratings, other) == pytest.approx(0, abs=0.05)
    assert weighted_kappa(ratings, other) == pytest.approx(weighted_kappa(other, ratings))
    assert weighted_kappa([1, 2], [2, 1]) == -1
    assert np.isnan(weighted_kappa([2, 2], [2, 2]))


def test_of_two_levels_it_is_cohens_kappa() -> None:
    a, b = [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]
    cohen = (3 / 5 - (2 * 2 + 3 * 3) / 25) / (1 - (2 * 2 + 3 * 3) / 25)
    assert weighted_kappa(a, b) == pytest.approx(cohen)


def test_it_is_torchmetrics_kappa() -> None:
    draw = np.random.default_rng(4)
    a, b = draw.integers(0, 5, 300), draw.integers(0, 5, 300)
    expected = multiclass_cohen_kappa(torch.tensor(a), torch.tensor(b), num_classes=5, weights="quadratic")
    assert weighted_kappa(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_refused_arguments() -> None:
    with pytest.raises(ValueError, match="raters, K"):
        rater_agreement([[1, 2]])
    with pytest.raises(ValueError, match="finite"):
        rater_agreement([[[1, np.inf]]])


def draw_ratings(num_queries: int, noise: float, raters: int = 3) -> list[np.ndarray]:
    draw = np.random.default_rng(num_queries)
    true = [draw.integers(1, 6, int(draw.integers(2, 5))) for _ in range(num_queries)]
    return [np.clip(np.rint(q + noise * draw.normal(size=(raters, len(q)))), 1, 5) for q in true]


def test_the_interval_is_around_the_measure_of_all_queries_together() -> None:
    ratings = draw_ratings(60, 0.9)
    found, whole = rater_agreement(ratings), np.concatenate(ratings, axis=1)
    assert found.alpha.mean == pytest.approx(krippendorff_alpha(whole))
    kappas = [weighted_kappa(whole[i], whole[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.kappa.mean == pytest.approx(np.mean(kappas))
    for measure in (found.alpha, found.kappa):
        assert measure.low < measure.mean < measure.high <= 1
    assert (found.num_raters, found.num_items) == (3, whole.shape[1])
    apart = rater_agreement(draw_ratings(60, 3.0))
    assert apart.alpha.high < found.alpha.low


def test_more_queries_make_the_interval_narrower() -> None:
    few, many = (rater_agreement(draw_ratings(number, 0.9)).alpha for number in (20, 500))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_two_kinds_of_raters() -> None:
    """Humans who agree with a model that copies them, and not with one that guesses."""
    humans = draw_ratings(80, 0.3)
    copies = [table[:1] for table in humans]
    draw = np.random.default_rng(1)
    guesses = [draw.integers(1, 6, (1, table.shape[1])) for table in humans]
    close, far = agreement_between(humans, copies), agreement_between(humans, guesses)
    assert close is not None and far is not None
    assert close.mean > 0.8 and far.low < 0.05 < close.low


def test_raters_who_skip_take_no_part_where_they_do() -> None:
    """The third rater rates the first query only; alpha sees all, as krippendorff_alpha does."""
    ratings = [np.array([[1, 4], [2, 4], [1, 5.0]]), np.array([[3, 5.0], [3, 4]])]
    padded = np.array([[1, 4, 3, 5], [2, 4, 3, 4], [1, 5, np.nan, np.nan]])
    found = rater_agreement(ratings)
    assert found.alpha.mean == pytest.approx(krippendorff_alpha(padded))


def test_where_nothing_can_disagree_there_is_no_number() -> None:
    same = [np.ones((2, 3))] * 4
    assert rater_agreement(same).alpha is None
    assert agreement_between(same, same) is None


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_of_ratings_that_are_all_different_is_that_of_the_definition(level) -> None:
    """Every pair of ratings of one item against every pair of all ratings, one by one."""
    draw = np.random.default_rng(3)
    table = draw.normal(size=(3, 12)) + 2 * draw.normal(size=12)
    ratings, number = table.ravel(), table.size
    place = ratings.argsort().argsort() if level == "ordinal" else ratings

    def distance(a: float, b: float) -> float:
        return float(a != b) if level == "nominal" else float((a - b) ** 2)

    columns = place.reshape(table.shape).T
    observed = sum(distance(a, b) for column in columns for a in column for b in column) / 2
    expected = sum(distance(a, b) for a in place for b in place)
    assert krippendorff_alpha(table, level) == pytest.approx(1 - observed * (number - 1) / expected)


def test_ratings_of_any_number_of_levels_take_little_memory() -> None:
    """2,633 levels: a table with a cell for every two of them, of each query, would be 39 GB."""
    ratings = [table + 1e-6 * number for number, table in enumerate(draw_ratings(700, 0.9))]
    tracemalloc.start()
    found = rater_agreement(ratings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = rater_agreement(draw_ratings(700, 0.9))
    assert peak < 200e6 and found.kappa.mean == pytest.approx(whole.kappa.mean, abs=1e-3)
    assert found.alpha is not None and found.alpha.low < found.alpha.mean < found.alpha.high


@pytest.mark.parametrize("scale", [1e-9, 1e9, 1e300])
def test_the_unit_of_ratings_does_not_matter(scale: float) -> None:
    ratings = draw_ratings(20, 0.9)
    found, scaled = rater_agreement(ratings), rater_agreement([(table - 3) * scale for table in ratings])
    assert scaled.alpha == pytest.approx(found.alpha) and scaled.kappa == pytest.approx(found.kappa)
