"""beta-DPO and the released implicit beta."""

from __future__ import annotations

import pytest
import torch

from mmrlhf.losses.call_beta import BetaDPO, ReleasedImplicitBeta
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.objective import Objective, PairInputs


def inputs_of(gaps: list[float]) -> PairInputs:
    gap = torch.tensor(gaps)
    zero, tokens = torch.zeros_like(gap), torch.arange(1, len(gaps) + 1)
    return PairInputs(gap, zero, zero, zero, None, tokens, tokens)


GAPS = [2.0, 4.0, 3.0, 90.0, 1.0]


def test_worked_example() -> None:
    """Mean 20; the 80% nearest leave out 90; beta = 0.1 * (1 + 0.6 * 0.1 * 2.5) = 0.115."""
    terms = BetaDPO()(inputs_of(GAPS))
    torch.testing.assert_close(terms.beta, torch.full((5,), 0.115))
    assert (terms.loss > 0).tolist() == [True, True, True, False, True]


def test_alpha_zero_is_dpo_on_the_kept_pairs() -> None:
    inputs = inputs_of(GAPS)
    torch.testing.assert_close(BetaDPO(alpha=0.0, filtered=0.0)(inputs).loss, DPO()(inputs).loss)


@pytest.mark.parametrize(("number", "filtered", "kept"), [(20, 0.9, 2), (10, 0.9, 1), (5, 0.2, 4), (7, 0.5, 3)])
def test_the_share_of_pairs_that_stays_is_exact(number: int, filtered: float, kept: int) -> None:
    gaps = [float(gap) for gap in range(number)]
    assert int((BetaDPO(filtered=filtered).scale(inputs_of(gaps)).a > 0).sum()) == kept


def test_baseline_is_where_beta_is_beta_zero() -> None:
    torch.testing.assert_close(BetaDPO(baseline=0.1, filtered=0.0)(inputs_of([1.0, 1.0])).beta, torch.full((2,), 0.1))


def test_beta_stays_positive() -> None:
    assert BetaDPO(alpha=100.0)(inputs_of([-50.0, -60.0])).beta.tolist() == pytest.approx([1e-3] * 2)


def test_one_pair_is_kept_whatever_the_share() -> None:
    assert BetaDPO(filtered=0.9)(inputs_of([3.0])).loss.item() > 0


def test_released_beta_has_one_value_per_call_and_no_margin() -> None:
    objective, inputs = ReleasedImplicitBeta(), inputs_of([0.5, -1.0, 2.0, 4.0, -3.0, 1.0, 0.0, 2.5, 9.0, -6.0])
    beta = objective(inputs).beta
    assert beta.unique().numel() == 1 and not objective.needs_margin
    drawn = beta[0].item() / 0.1 - 1  # w * (mean of the drawn - mean), here with w = 0.5
    assert drawn != 0 and abs(drawn) < 0.5 * 9
    torch.testing.assert_close(objective(inputs).beta, beta)


def test_released_beta_with_w_zero_or_one_pair_is_dpo() -> None:
    """The released code fails on one pair: the standard deviation of one value is not a number."""
    for objective, gaps in ((ReleasedImplicitBeta(w=0.0), GAPS), (ReleasedImplicitBeta(), [3.0])):
        torch.testing.assert_close(objective(inputs_of(gaps)).loss, DPO()(inputs_of(gaps)).loss)


def test_released_beta_with_equal_gaps_is_dpo() -> None:
    torch.testing.assert_close(ReleasedImplicitBeta()(inputs_of([2.0] * 4)).loss, DPO()(inputs_of([2.0] * 4)).loss)


@pytest.mark.parametrize("objective", [BetaDPO(), ReleasedImplicitBeta()], ids=repr)
def test_rounding_decides_nothing(objective: Objective) -> None:
    """At step 0 gaps are rounding: whatever it is, the same pairs count as much."""
    generator = torch.Generator().manual_seed(0)
    scales = []
    for _ in range(20):
        gaps = 1e-4 * torch.randn(10, generator=generator)
        scales.append(objective.scale(inputs_of(gaps.tolist())))
    assert all(torch.equal(scale.a, scales[0].a) for scale in scales)
    assert scales[0].a.sum() == (8 if isinstance(objective, BetaDPO) else 10)
    for scale in scales:
        torch.testing.assert_close(scale.b, torch.full((10,), 0.1), rtol=2e-4, atol=0)
