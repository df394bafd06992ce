"""build_pairs against a plain-Python statement of each scheme."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.little_work import little_work
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.losses.pairs import build_pairs
from mmrlhf.tensors import PairIndex

SCHEMES = ("all", "hardest", "adjacent", "best_vs_rest")
NAN = float("nan")


def ranked(*groups: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """pairs, ranks and group ids of groups given by their ranks."""
    ranks = [rank for group in groups for rank in group]
    ids = [g for g, group in enumerate(groups) for _ in group]
    pairs = [(i, j) for i, j in product(range(len(ranks)), repeat=2) if ids[i] == ids[j] and ranks[i] < ranks[j]]
    return torch.tensor(pairs).reshape(-1, 2).long(), torch.tensor(ranks), torch.tensor(ids).long()


def chosen_over_rejected(index: PairIndex) -> set[tuple[int, int]]:
    return set(zip(index.chosen.tolist(), index.rejected.tolist(), strict=True))


def select(inputs: tuple[Tensor, Tensor, Tensor], scheme: str, **options) -> set[tuple[int, int]]:
    return chosen_over_rejected(build_pairs(*inputs, scheme=scheme, **options))  # pyright: ignore


def test_four_ranks() -> None:
    inputs = ranked([2, 1, 4, 3])
    assert len(select(inputs, "all")) == 6
    assert select(inputs, "hardest") == {(1, 2)}
    assert select(inputs, "adjacent") == {(1, 0), (0, 3), (3, 2)}
    assert select(inputs, "best_vs_rest") == {(1, 0), (1, 2), (1, 3)}


def test_ties_at_the_top_and_in_the_middle() -> None:
    inputs = ranked([1, 1, 2], [1, 2, 2, 5])
    assert select(inputs, "hardest") == {(0, 2), (3, 6)}
    assert select(inputs, "adjacent") == {(0, 2), (1, 2), (3, 4), (3, 5), (4, 6), (5, 6)}
    assert select(inputs, "best_vs_rest") == {(0, 2), (1, 2), (3, 4), (3, 5), (3, 6)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4).map(float), min_size=1, max_size=5), min_size=1, max_size=5))
def test_schemes_by_rank(groups: list[list[float]]) -> None:
    inputs = pairs, ranks, ids = ranked(*groups)
    for g in range(len(groups)):
        own = [(i, j) for i, j in pairs.tolist() if ids[i] == g]
        levels = sorted({ranks[i].item() for i in range(len(ranks)) if ids[i] == g})
        below = dict(zip(levels, levels[1:], strict=False))
        best_worst = [(i, j) for i, j in own if ranks[i] == levels[0] and ranks[j] == levels[-1]]

        def kept(scheme: str, group: int = g) -> list[tuple[int, int]]:
            return sorted((i, j) for i, j in select(inputs, scheme) if ids[i] == group)

        assert kept("all") == own
        assert kept("hardest") == best_worst[:1]
        assert kept("best_vs_rest") == [(i, j) for i, j in own if ranks[i] == levels[0]]
        assert kept("adjacent") == [(i, j) for i, j in own if ranks[j].item() == below.get(ranks[i].item())]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4).map(float), min_size=1, max_size=5), min_size=1, max_size=5))
def test_ranks_and_the_pairs_they_imply_select_the_same(groups: list[list[float]]) -> None:
    pairs, ranks, ids = ranked(*groups)
    for scheme in SCHEMES:
        assert select((pairs, ranks, ids), scheme) == select((pairs, torch.full_like(ranks, NAN), ids), scheme)


def test_explicit_pairs_without_ranks() -> None:
    """a > b > c > d as three pairs, then a cycle: the chain's ends win and lose most, a cycle has no best."""
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 4]])
    inputs = pairs, torch.full((7,), NAN), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    assert select(inputs, "hardest") == {(0, 1), (4, 5)}
    assert select(inputs, "adjacent") == {(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 4)}
    assert select(inputs, "best_vs_rest") == {(0, 1), (4, 5), (5, 6), (6, 4)}


def test_known_ranks_decide_between_explicit_pairs() -> None:
    """Wins and losses alone would tie (0, 1) with (2, 3); the ranks say that (2, 3) is the wider one."""
    pairs, ids = torch.tensor([[0, 1], [2, 3]]), torch.zeros(4).long()
    assert select((pairs, torch.tensor([2.0, 3.0, 1.0, 4.0]), ids), "hardest") == {(2, 3)}
    assert select((pairs, torch.full((4,), NAN), ids), "hardest") == {(0, 1)}
    assert select((pairs, torch.tensor([2.0, NAN, 1.0, 4.0]), ids), "hardest") == {(0, 1)}, "one unknown rank: by pairs"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_responses_are_one_pair_under_every_scheme(scheme: str) -> None:
    assert select(ranked([2, 1]), scheme) == {(1, 0)}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weighting", ["pair", "query"])
def test_nothing_to_compare(scheme: str, weighting: str) -> None:
    for groups in ([], [[1.0]], [[1.0, 1.0], [2.0]]):
        index = build_pairs(*ranked(*groups), scheme=scheme, weighting=weighting)  # pyright: ignore
        assert len(index) == 0 and index.weight.shape == (0,) and index.chosen.dtype == torch.int64


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights(scheme: str) -> None:
    inputs = ranked([1, 2, 3], [1, 1], [1, 2], [3, 2, 1, 1])
    group_weight = torch.tensor([1.0, 1.0, 0.0, 0.5])
    each = build_pairs(*inputs, scheme=scheme, group_weight=group_weight)  # pyright: ignore
    assert torch.equal(each.weight, group_weight[each.group])
    shared = build_pairs(*inputs, scheme=scheme, weighting="query", group_weight=group_weight)  # pyright: ignore
    sums = torch.zeros(4).index_add(0, shared.group, shared.weight)
    torch.testing.assert_close(sums, torch.tensor([1.0, 0.0, 0.0, 0.5]))
    assert len(shared) == len(each), "weight 0 keeps its pairs"


def test_group_ids_are_the_responses() -> None:
    index = build_pairs(*ranked([1, 2], [2, 1, 3]))
    assert index.group.tolist() == [0, 1, 1, 1]


def test_order_follows_the_input() -> None:
    pairs, ranks, ids = ranked([1, 2, 3])
    turned = build_pairs(pairs.flip(0), ranks, ids)
    assert torch.equal(torch.stack([turned.chosen, turned.rejected], 1), pairs.flip(0))


def test_refused_arguments() -> None:
    with pytest.raises(ConfigError, match="scheme=best"):
        build_pairs(*ranked([1, 2]), scheme="best")  # pyright: ignore
    with pytest.raises(ConfigError, match="weighting=group"):
        build_pairs(*ranked([1, 2]), weighting="group")  # pyright: ignore
    with pytest.raises(ValueError, match=r"\(Q, 2\)"):
        build_pairs(torch.zeros(4).long(), torch.zeros(2), torch.zeros(2).long())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_five_hundred_responses_are_quick(scheme: str) -> None:
    inputs = ranked(*[[1.0, 2.0, 3.0, 4.0, 5.0]] * 100)
    with little_work():
        assert len(build_pairs(*inputs, scheme=scheme)) > 0  # pyright: ignore
