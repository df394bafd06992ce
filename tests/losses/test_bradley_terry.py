"""Reward losses and mDPO's image term: symmetry, minima and shapes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.losses.bradley_terry import bradley_terry, centring, tie_loss
from mmrlhf.losses.image_conditional import anchor, image_conditional

REWARDS = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), max_size=10)


@settings(max_examples=50, deadline=None)
@given(rewards=REWARDS, shift=st.floats(-10, 10))
def test_only_centring_sees_a_common_shift(rewards: list, shift: float) -> None:
    a, b = torch.tensor(rewards, dtype=torch.float32).reshape(-1, 2).unbind(1)
    torch.testing.assert_close(bradley_terry(a + shift, b + shift), bradley_terry(a, b), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tie_loss(a, b), tie_loss(b, a))
    torch.testing.assert_close(centring(a, b), (a + b) ** 2)
    torch.testing.assert_close(tie_loss(a, b), (a - b) ** 2)
    assert (bradley_terry(a, b) + bradley_terry(b, a) >= 2 * math.log(2) - 1e-5).all()


def test_equal_rewards_cost_log_two() -> None:
    zero = torch.zeros(1)
    assert bradley_terry(zero, zero).item() == pytest.approx(math.log(2))
    assert tie_loss(zero, zero).item() == 0


def test_large_gaps_stay_finite() -> None:
    far = torch.tensor([1e4]), torch.tensor([-1e4])
    assert bradley_terry(*far).item() == 0 and bradley_terry(*reversed(far)).item() == 2e4


@pytest.mark.parametrize("loss", [bradley_terry, tie_loss, centring])
def test_nothing_broadcasts(loss) -> None:
    with pytest.raises(ValueError, match="one P"):
        loss(torch.zeros(3), torch.zeros(3, 1))


def test_image_term_rewards_looking_at_the_image() -> None:
    """At no difference log 2; the gradient raises the log-ratio with the image and lowers the one without."""
    seen, damaged = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    loss = image_conditional(seen, damaged, beta=0.1)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.full((2,), math.log(2)))
    assert seen.grad is not None and damaged.grad is not None
    torch.testing.assert_close(seen.grad, torch.full((2,), -0.05))
    torch.testing.assert_close(damaged.grad, torch.full((2,), 0.05))
    with pytest.raises(ValueError, match="one P"):
        image_conditional(torch.zeros(2), torch.zeros(1), beta=0.1)


def test_anchor_is_small_where_the_chosen_response_gained() -> None:
    low, high = anchor(torch.tensor([-10.0, 10.0]), beta=0.5).tolist()
    assert low > high
    assert anchor(torch.tensor([2.0]), beta=0.5, shift=1.0).item() == pytest.approx(math.log(2))
