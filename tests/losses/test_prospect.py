"""KTO as a loss of single responses: labels, directions, a number by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.losses.prospect import KTO, KTOByReward

NAN = float("nan")


def test_labels_by_rank() -> None:
    """Two queries: ranks 2, 1, 1 and a query with one unranked response; then one of ranks 3 and 2."""
    ranks = torch.tensor([2.0, 1.0, 1.0, NAN, 3.0, 2.0])
    labels = KTO().labels(ranks, None, torch.tensor([0, 0, 0, 1, 2, 2]))
    torch.testing.assert_close(labels, torch.tensor([0.0, 1.0, 1.0, NAN, 0.0, 1.0]), equal_nan=True)


def test_labels_by_reward_need_no_ranks() -> None:
    ranks, group = torch.full((3,), NAN), torch.arange(3)
    labels = KTOByReward(threshold=0.5).labels(ranks, torch.tensor([0.4, 0.5, 0.6]), group)
    assert labels.tolist() == [0, 0, 1]


def test_by_hand() -> None:
    """beta 1, KL 1: a desirable ratio of 2 costs 1 - sigmoid(1) = 0.268941; an undesirable one 1.5 * sigmoid(1)."""
    objective = KTO(beta=1.0, undesirable_weight=1.5)
    loss = objective.response_loss(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, NAN]), torch.tensor(1.0))
    torch.testing.assert_close(loss, torch.tensor([0.268941, 1.096588, 0.0]))


@settings(max_examples=15)
@given(ratio=st.floats(-40, 40), kl=st.floats(0, 20), label=st.sampled_from([0.0, 1.0]))
def test_gradient_is_that_of_finite_differences_and_has_the_labels_sign(ratio: float, kl: float, label: float) -> None:
    objective = KTO()

    def loss(value: float) -> float:
        found = objective.response_loss(torch.tensor([value]), torch.tensor([label]), torch.tensor(kl))
        return float(found.double())

    at = torch.tensor([ratio], requires_grad=True)
    objective.response_loss(at, torch.tensor([label]), torch.tensor(kl)).sum().backward()
    assert at.grad is not None
    assert at.grad.item() == pytest.approx((loss(ratio + 0.05) - loss(ratio - 0.05)) / 0.1, abs=2e-4)
    assert at.grad.item() < 0 if label else at.grad.item() > 0
    assert 0 <= loss(ratio) <= 1
