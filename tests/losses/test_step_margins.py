"""gamma-PO, AMaPO and AOT: offsets that come from all pairs of a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.losses.adaptive_margin import AMaPO
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.dynamic_margin import GammaPO, margin_shares
from mmrlhf.losses.length_normalised import SimPO
from mmrlhf.losses.objective import PairInputs
from mmrlhf.losses.optimal_transport import AOT

GAPS = st.lists(st.floats(-20, 20), min_size=1, max_size=12)


def inputs_of(policy: list[float], reference: list[float] | None = None) -> PairInputs:
    """Pairs with these gaps of policy and reference; every response has one token."""
    gap, zero, one = torch.tensor(policy), torch.zeros(len(policy)), torch.ones(len(policy))
    other = zero if reference is None else torch.tensor(reference)
    return PairInputs(gap, zero, other, zero, None, one, one)


def inner_loss(shares: torch.Tensor, gaps: torch.Tensor, target: float, tau: float) -> torch.Tensor:
    """What gamma-PO's margins minimise."""
    violated = -torch.nn.functional.logsigmoid(gaps - target * shares)
    return (violated + tau * shares * shares.log()).mean()


@settings(max_examples=10)
@given(gaps=GAPS, target=st.floats(0.01, 5), tau=st.floats(0.05, 20))
def test_gamma_po_margins_are_the_minimum(gaps: list[float], target: float, tau: float) -> None:
    """The shares' mean is 1, and no small shift of a margin from one pair to another is better."""
    gap = torch.tensor(gaps, dtype=torch.float64)
    shares = margin_shares(gap, target_margin=target, tau=tau).double()
    assert shares.mean().item() == pytest.approx(1, rel=1e-5)
    best = inner_loss(shares.clamp(min=1e-30), gap, target, tau)
    for i in range(len(gaps)):
        moved = shares.clone()
        step = 0.05 * moved[i].item()
        moved[i] -= step
        moved[(i + 1) % len(gaps)] += step
        assert inner_loss(moved.clamp(min=1e-30), gap, target, tau) >= best - 1e-5 * (1 + best.abs())


@settings(max_examples=10)
@given(gaps=GAPS, target=st.floats(0.01, 5), tau=st.floats(0.05, 20))
def test_gamma_po_gives_more_to_pairs_that_are_further_apart(gaps: list[float], target: float, tau: float) -> None:
    shares = margin_shares(torch.tensor(gaps).sort().values, target_margin=target, tau=tau)
    assert (shares.diff() >= -1e-5).all()


@settings(max_examples=10)
@given(gaps=GAPS)
def test_gamma_po_is_dpo_where_its_margins_are_equal(gaps: list[float]) -> None:
    inputs, dpo = inputs_of(gaps), DPO()(inputs_of(gaps)).loss
    torch.testing.assert_close(GammaPO(target_margin=0.0)(inputs).loss, dpo)
    torch.testing.assert_close(GammaPO(tau=1e6)(inputs).loss, dpo, rtol=1e-4, atol=1e-5)
    alone = inputs_of(gaps[:1])
    torch.testing.assert_close(GammaPO(target_margin=3.0)(alone).loss, DPO()(alone).loss, rtol=1e-4, atol=1e-5)


def test_gamma_po_by_hand() -> None:
    """Two pairs far on either side: sigmoid(gamma_i - r_i) is 0 and 1, so log(n p_1) - log(n p_2) = gamma_0 / tau.

    With gamma_0 / tau = log 3: shares 1.5 and 0.5, offsets 0.5 gamma_0 and -0.5 gamma_0.
    """
    shares = margin_shares(torch.tensor([50.0, -50.0]), target_margin=1.0986123, tau=1.0)
    torch.testing.assert_close(shares, torch.tensor([1.5, 0.5]))
    offset = GammaPO(beta=1.0, target_margin=1.0986123).scale(inputs_of([50.0, -50.0])).m
    torch.testing.assert_close(offset, torch.tensor([0.5493061, -0.5493061]))


def test_amapo_by_hand() -> None:
    """z = 1, 2, 3: mean 2, standard deviation 1; the first is one deviation behind: beta e^(1 * 2) = 2 * 7.389056."""
    scale = AMaPO(beta=2.0).scale(inputs_of([1.0, 2.0, 3.0]))
    torch.testing.assert_close(scale.m, torch.tensor([14.778112, 0.0, 0.0]))


@settings(max_examples=10)
@given(gaps=GAPS)
def test_amapo_asks_more_of_pairs_behind_the_mean_only(gaps: list[float]) -> None:
    z = torch.tensor(gaps)
    margin = AMaPO().scale(inputs_of(gaps)).m
    assert margin.isfinite().all() and (margin >= 0).all()
    assert (margin[z >= z.mean()] == 0).all()
    if z.mean() > 0:  # further behind asks for more
        behind = z < z.mean()
        order = z[behind].argsort()
        assert (margin[behind][order].diff() <= 0).all()


@settings(max_examples=10)
@given(gap=st.floats(-20, 20))
def test_amapo_of_equal_pairs_is_simpo_without_a_margin(gap: float) -> None:
    for gaps in ([gap], [gap] * 4):
        inputs = inputs_of(gaps)
        torch.testing.assert_close(AMaPO()(inputs).loss, SimPO(target_margin=0.0)(inputs).loss)


def test_aot_by_hand() -> None:
    """Policy gaps 3, 1, reference gaps -1, 2 for the same pairs: 3 meets 2 and 1 meets -1, so beta times 1 and 2."""
    loss = AOT(beta=1.0)(inputs_of([3.0, 1.0], [-1.0, 2.0])).loss
    torch.testing.assert_close(loss, torch.tensor([0.3132617, 0.1269280]))


@settings(max_examples=10)
@given(
    rows=st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=10), seed=st.integers(0, 9)
)
def test_aot_does_not_see_which_pair_a_reference_gap_is_of(rows: list[tuple[float, float]], seed: int) -> None:
    policy, reference = [p for p, _ in rows], torch.tensor([r for _, r in rows])
    mixed = reference[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    one, other = (AOT()(inputs_of(policy, gaps.tolist())).loss for gaps in (reference, mixed))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@settings(max_examples=10)
@given(rows=st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=10))
def test_aot_is_dpo_where_both_order_the_pairs_alike(rows: list[tuple[float, float]]) -> None:
    policy, reference = sorted(p for p, _ in rows), sorted(r for _, r in rows)
    inputs = inputs_of(policy, reference)
    torch.testing.assert_close(AOT()(inputs).loss, DPO()(inputs).loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gap", [0.1, 2.9233, -0.7])
def test_amapo_gives_no_margin_where_all_pairs_are_as_far_apart(gap: float) -> None:
    """The mean of equal numbers in float32 may be more than each of them."""
    for number in range(2, 200):
        assert AMaPO().scale(inputs_of([gap] * number)).m.abs().max() == 0
