"""Plackett-Luce against its definition, and its agreement with DPO for two responses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.objective import PairInputs
from mmrlhf.losses.plackett_luce import PlackettLuce, best_of_all, plackett_luce

ONE_GROUP = torch.zeros(3, dtype=torch.long)


def test_worked_example() -> None:
    """Scores 1 > 0 > -1: -log(e/(e+1+1/e)) - log(1/(1+1/e))."""
    e = math.e
    expected = -math.log(e / (e + 1 + 1 / e)) - math.log(1 / (1 + 1 / e))
    loss = plackett_luce(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([2.0, 1.0, 3.0]), ONE_GROUP, num_groups=1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(a=st.floats(-50, 50), b=st.floats(-50, 50))
def test_two_responses_are_a_pair(a: float, b: float) -> None:
    """K = 2 is DPO."""
    ratios, zero = torch.tensor([a, b]), torch.zeros(1)
    loss = PlackettLuce(beta=0.3).ranking_loss(ratios, torch.tensor([1.0, 2.0]), ONE_GROUP[:2], num_groups=1)
    dpo = DPO(beta=0.3)(PairInputs(ratios[:1], ratios[1:], zero, zero)).loss
    torch.testing.assert_close(loss, dpo, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(scores=st.lists(st.floats(-5, 5), min_size=1, max_size=4))
def test_rankings_are_a_distribution(scores: list[float]) -> None:
    """The probabilities of all orders of K responses sum to 1."""
    values, group = torch.tensor(scores, dtype=torch.float32), torch.zeros(len(scores), dtype=torch.long)
    losses = [
        plackett_luce(values, torch.tensor(order, dtype=torch.float32), group, num_groups=1)
        for order in itertools.permutations(range(len(scores)))
    ]
    torch.testing.assert_close(torch.exp(-torch.cat(losses)).sum(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_groups_and_order_of_responses_do_not_matter(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    scores, ranks = torch.randn(len(group)), torch.randint(1, 4, (len(group),)).float()
    together = plackett_luce(scores, ranks, group, num_groups=len(sizes))
    alone = [
        plackett_luce(scores[group == g], ranks[group == g], group[group == g] * 0, num_groups=1)
        for g in group.unique()
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    order = torch.randperm(len(group))
    torch.testing.assert_close(
        plackett_luce(scores[order], ranks[order], group[order], num_groups=len(sizes)), together
    )


def test_the_right_order_costs_least() -> None:
    scores = torch.tensor([3.0, 2.0, 1.0])
    right = plackett_luce(scores, torch.tensor([1.0, 2.0, 3.0]), ONE_GROUP, num_groups=1)
    wrong = plackett_luce(scores, torch.tensor([3.0, 2.0, 1.0]), ONE_GROUP, num_groups=1)
    assert right < wrong


def test_ties_unranked_and_empty_groups_cost_nothing_and_give_no_gradient() -> None:
    scores = torch.randn(5, requires_grad=True)
    ranks = torch.tensor([1.0, 1.0, torch.nan, 1.0, 2.0])
    loss = plackett_luce(scores, ranks, torch.tensor([0, 0, 0, 2, 2]), num_groups=4)
    loss.sum().backward()
    assert loss[[0, 1, 3]].tolist() == [0, 0, 0] and loss[2] > 0
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad[:3].tolist() == [0, 0, 0]


def test_no_responses_and_wrong_shapes() -> None:
    empty = torch.zeros(0)
    assert plackett_luce(empty, empty, empty.long(), num_groups=2).tolist() == [0, 0]
    with pytest.raises(ValueError, match="one P"):
        plackett_luce(torch.zeros(3, 1), torch.zeros(3), ONE_GROUP, num_groups=1)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_best_is_the_right_class(data: st.DataObject) -> None:
    """torch's cross-entropy where one is best; of several best, the mean of each among those that are not."""
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    ranks = torch.tensor([float(data.draw(st.integers(1, 3))) for _ in group])
    scores = torch.randn(len(group), generator=torch.Generator().manual_seed(sum(sizes)))
    found, start = best_of_all(scores, ranks, group, num_groups=len(sizes)), 0
    for number, size in enumerate(sizes):
        own, rank = scores[start : start + size], ranks[start : start + size]
        rest = own[rank != rank.min()]
        expected = [
            torch.nn.functional.cross_entropy(torch.cat([best[None], rest]), torch.tensor(0))
            for best in own[rank == rank.min()]
        ]
        torch.testing.assert_close(found[number], torch.stack(expected).mean())
        start += size


def test_who_has_no_rank_is_no_rival() -> None:
    nan = math.nan
    scores, ranks = torch.tensor([0.0, 1.0, 5.0, 2.0]), torch.tensor([2.0, 1.0, nan, nan])
    group = torch.tensor([0, 0, 0, 1])
    found = best_of_all(scores, ranks, group, num_groups=2)
    torch.testing.assert_close(found, torch.tensor([math.log(1 + math.exp(-1.0)), 0.0]))
