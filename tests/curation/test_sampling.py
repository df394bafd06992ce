"""Clusters, shares and choices: laws, and what a planted pool must give."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from mmrlhf.curation.clusters import k_means, nearest_centres
from mmrlhf.curation.diversity import cosine_to_sample, effective_number
from mmrlhf.curation.quotas import ANY, type_quotas, water_fill
from mmrlhf.curation.sampling import choose, farthest_points
from mmrlhf.errors import ConfigError


def planted(sizes: list[int], *, noise: float = 0.05, dim: int = 16, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Unit rows around as many directions at right angles as there are sizes, and the direction of each."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.eye(len(sizes), dim)[label] + noise * rng.normal(size=(len(label), dim))
    return normalize(torch.from_numpy(rows.astype(np.float32)), dim=1), label


def test_planted_clusters_are_found() -> None:
    rows, label = planted([400, 30, 90, 5])
    centres = k_means(rows, 8, seed=0)
    found, cosine = nearest_centres(rows.split(100), centres)
    pure = {(a, b) for a, b in zip(found[:, 0].tolist(), label.tolist(), strict=True)}
    assert len(pure) == 8 and {b for _, b in pure} == {0, 1, 2, 3}
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(8))
    assert cosine.min() > 0.8


def test_the_same_seed_gives_the_same_and_no_cluster_is_empty() -> None:
    rows, _ = planted([50, 50])
    first, again = (k_means(rows, 20, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert len(np.unique(nearest_centres([rows], first)[0])) == 20
    assert len(k_means(rows[:3], 20, seed=0)) == 3
    assert len(k_means(rows[:1].expand(9, -1), 4, seed=0)) == 1


def test_the_two_nearest_come_in_order() -> None:
    rows, _ = planted([20, 20, 20])
    places, cosines = nearest_centres([rows], torch.eye(3, 16), 2)
    wanted = (rows @ torch.eye(3, 16).T).sort(dim=1, descending=True)
    assert np.array_equal(places, wanted.indices[:, :2].numpy()) and np.allclose(cosines, wanted.values[:, :2])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 300))
def test_water_fills_from_below(sizes: list[int], total: int) -> None:
    shares = water_fill(np.array(sizes), total)
    assert shares.sum() == min(total, sum(sizes)) and (shares <= sizes).all() and (shares >= 0).all()
    level = shares.max()
    # who has less than the highest share, by more than the one of rounding, has given all
    assert all(share == size or share >= level - 1 for share, size in zip(shares, sizes, strict=True))


AVAILABLE = {"long": 50, "short": 60, "mcq": 10, "safety": 20, "video": 9}


@given(
    st.integers(1, 5000),
    st.fixed_dictionaries({"long": st.floats(0.1, 9), "short": st.floats(0.1, 9)}),
    st.floats(0, 0.9),
)
def test_shares_sum_to_the_size(size: int, mix: dict[str, float], fixed: float) -> None:
    found = type_quotas(size, AVAILABLE, mix, {"safety": fixed})
    assert sum(found.values()) == size
    assert abs(found["safety"] - size * fixed) <= 1
    rest = size * (1 - fixed)
    assert abs(found["long"] - rest * mix["long"] / sum(mix.values())) <= 1


def test_the_papers_mix() -> None:
    found = type_quotas(1000, AVAILABLE, {"long": 4, "short": 5, "mcq": 1}, {"safety": 0.1, "video": 0.1})
    assert found == {"long": 320, "short": 400, "mcq": 80, "safety": 100, "video": 100}
    assert type_quotas(7, AVAILABLE, None, {}) == {ANY: 7}


@pytest.mark.parametrize(
    ("mix", "fixed", "said"),
    [
        ({"lnog": 1}, {}, "no query is of this type"),
        ({"long": 1}, {"saftey": 0.1}, "no query is of this type"),
        ({"long": -1}, {}, "0 or more"),
        ({"long": float("nan")}, {}, "0 or more"),
        ({"long": 1}, {"long": 0.5}, "a fixed share and one in the mix"),
        ({"long": 1}, {"video": 0.6, "safety": 0.6}, "too much"),
        (None, {"video": 0.6}, "too little"),
        ({"long": 0}, {"video": 0.6}, "too little"),
    ],
)
def test_shares_that_cannot_be(mix: dict[str, float] | None, fixed: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        type_quotas(10, AVAILABLE, mix, fixed)
    assert said in str(caught.value)


def test_farthest_points_are_the_greedy_ones() -> None:
    rows, _ = planted([12, 7, 5], noise=0.4)
    found = farthest_points(rows, 6)
    chosen = [int((rows @ rows.mean(0)).argmax())]
    while len(chosen) < 6:
        gaps = {p: max(float(rows[p] @ rows[c]) for c in chosen) for p in range(len(rows)) if p not in chosen}
        chosen.append(min(gaps, key=lambda p: gaps[p]))
    assert found.tolist() == chosen
    assert sorted(farthest_points(rows[:1].expand(5, -1), 5).tolist()) == list(range(5))


@pytest.mark.parametrize("arm", ["spread", "paper", "random"])
def test_a_type_gives_what_is_wanted_or_all_it_has(arm) -> None:
    rows, label = planted([60, 20, 4])
    types = np.array(["a", "b"], dtype=object)[np.arange(84) % 2]
    chosen = choose(lambda wanted: rows[wanted], types, label, {"a": 20, "b": 100}, arm=arm, seed=1)
    assert len(np.unique(chosen)) == len(chosen) and Counter(types[chosen]) == {"a": 20, "b": 42}
    again = choose(lambda wanted: rows[wanted], types, label, {"a": 20, "b": 100}, arm=arm, seed=1)
    assert np.array_equal(chosen, again)


def test_clusters_make_a_sample_even_and_farthest_points_spread_it() -> None:
    """One kind of picture makes up 90% of the pool, and inside it one shot is there a hundred times."""
    rows, label = planted([900, 60, 40], noise=0.2)
    rows[:400] = normalize(rows[0] + 0.01 * torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    types = np.full(1000, "x", dtype=object)

    def take(wanted: np.ndarray) -> Tensor:
        return rows[wanted]

    samples = {arm: choose(take, types, label, {ANY: 30}, arm=arm, seed=2) for arm in ("spread", "paper", "random")}
    diversity = {arm: effective_number(label[chosen]) for arm, chosen in samples.items()}
    assert diversity["spread"] == diversity["paper"] == pytest.approx(3) and diversity["random"] < 2
    shots = {arm: int((chosen < 400).sum()) for arm, chosen in samples.items()}
    assert shots["spread"] <= 1 < shots["paper"] < shots["random"]


def test_measures() -> None:
    assert effective_number(np.array([0, 1, 2, 3])) == pytest.approx(4) and effective_number(np.empty(0)) == 0
    assert effective_number(np.array([0, 0, 0, 1])) == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)))
    rows, _ = planted([30, 30], noise=0.3)
    found = cosine_to_sample(lambda wanted: rows[wanted], np.arange(60), np.array([3, 40]))
    assert np.allclose(found, (rows @ rows[[3, 40]].T).max(1).values, atol=1e-6) and found[3] == pytest.approx(1)
