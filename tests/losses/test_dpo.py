"""DPO and its label-noise versions: limits, worked numbers, and label smoothing the right way round."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO, ConservativeDPO, RobustDPO
from mmrlhf.losses.objective import PairInputs

GAPS = st.lists(st.floats(-100, 100, width=32), max_size=10)


def inputs_of(gaps: list[float]) -> PairInputs:
    gap = torch.tensor(gaps, dtype=torch.float32)
    zero = torch.zeros_like(gap)
    return PairInputs(gap, zero, zero, zero)


def test_worked_example() -> None:
    """z = (-1 - -2) - (-4 - -3) = 2, beta z = 0.2, loss = log(1 + e^-0.2) = 0.598139."""
    terms = DPO()(PairInputs(*torch.tensor([[-1.0], [-4.0], [-2.0], [-3.0]]).unbind(0)))
    assert terms.loss.item() == pytest.approx(0.598139, abs=1e-6)
    assert [round(t.item(), 6) for t in (terms.logit, terms.reward_chosen, terms.reward_rejected)] == [0.2, 0.1, -0.1]


@settings(max_examples=30, deadline=None)
@given(gaps=GAPS, noise=st.floats(0, 0.45))
def test_label_noise_versions(gaps: list[float], noise: float) -> None:
    """robust is cDPO's two terms reweighted, and both are DPO without noise."""
    inputs, turned = inputs_of(gaps), inputs_of([-g for g in gaps])
    plain, reverse = DPO()(inputs).loss, DPO()(turned).loss
    cdpo = ConservativeDPO(label_smoothing=noise)(inputs).loss
    robust = RobustDPO(label_smoothing=noise)(inputs).loss
    torch.testing.assert_close(cdpo, (1 - noise) * plain + noise * reverse, rtol=1e-4, atol=1e-4)
    expected = ((1 - noise) * plain - noise * reverse) / (1 - 2 * noise)
    torch.testing.assert_close(robust, expected, rtol=1e-4, atol=1e-3)
    for smooth in (ConservativeDPO, RobustDPO):
        torch.testing.assert_close(smooth(label_smoothing=0.0)(inputs).loss, plain)


def test_robust_loss_is_unbiased_under_flips() -> None:
    """(1 - e) robust(z) + e robust(-z) = DPO(z)."""
    gaps, noise = [3.0, -7.0, 0.5], 0.2
    loss = RobustDPO(label_smoothing=noise)
    seen = (1 - noise) * loss(inputs_of(gaps)).loss + noise * loss(inputs_of([-g for g in gaps])).loss
    torch.testing.assert_close(seen, DPO()(inputs_of(gaps)).loss)


def test_no_smoothing_prefers_the_chosen_response() -> None:
    """The released code's documented default, 0, trains reversed preferences."""
    inputs = inputs_of([0.0])
    chosen = inputs.chosen_logprob.requires_grad_()
    ConservativeDPO(label_smoothing=0.0)(inputs).loss.sum().backward()
    assert chosen.grad is not None and chosen.grad.item() < 0


def test_conservative_minimum_is_at_the_labels_log_odds() -> None:
    noise, beta = 0.1, 0.1
    best = math.log((1 - noise) / noise) / beta
    low, middle, high = ConservativeDPO(beta=beta, label_smoothing=noise)(
        inputs_of([best - 1, best, best + 1])
    ).loss.tolist()
    assert middle < low and middle < high


@pytest.mark.parametrize("objective", [ConservativeDPO, RobustDPO])
@pytest.mark.parametrize("noise", [-0.1, 0.5, 1.0])
def test_smoothing_is_a_probability_below_one_half(objective: type, noise: float) -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        objective(label_smoothing=noise)
