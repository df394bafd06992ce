"""DA-DPO, MADPO and Uni-DPO: limits in which they are DPO, monotonicity in the margin, numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.losses.difficulty_beta import DADPO
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.length_normalised import LengthNormalisedDPO
from mmrlhf.losses.margin_weight import MADPO
from mmrlhf.losses.objective import Objective, PairInputs
from mmrlhf.losses.quality_weight import UniDPO

MARGIN = st.floats(-30, 30)


def inputs_of(gaps: list[float], margins: list[float], tokens: int = 2) -> PairInputs:
    """Pairs whose rejected response has log-ratio 0, of a reference that says 0 everywhere."""
    gap, zero = torch.tensor(gaps), torch.zeros(len(gaps))
    counts = torch.full((len(gaps),), tokens)
    return PairInputs(gap, zero, zero, zero, torch.tensor(margins), counts, counts)


def weights(objective: Objective, margins: list[float], gap: float = 0.0) -> Tensor:
    return objective.scale(inputs_of([gap] * len(margins), margins)).a


def test_da_dpo_by_hand() -> None:
    """beta 0.1, alpha 2, margins 3 and -3 over 1.5: b = 0.2 * (1 + 2) = 0.6; log(1 + e^-0.6) = 0.437488."""
    terms = DADPO(alpha=2.0, temperature=1.5)(inputs_of([1.0, 1.0], [3.0, -3.0]))
    torch.testing.assert_close(terms.beta, torch.tensor([0.6, 0.6]))
    torch.testing.assert_close(terms.loss, torch.tensor([0.437488, 0.437488]))


@settings(max_examples=20)
@given(gap=st.floats(-40, 40), margin=MARGIN)
def test_da_dpo_without_a_distance_is_dpo(gap: float, margin: float) -> None:
    torch.testing.assert_close(DADPO()(inputs_of([gap], [0.0])).loss, DPO()(inputs_of([gap], [0.0])).loss)
    beta = DADPO()(inputs_of([gap], [margin])).beta.item()
    assert beta >= 0.1 * (1 - 1e-6) and beta == pytest.approx(0.1 * (1 + abs(margin)), rel=1e-5)


def test_madpo_by_hand() -> None:
    """c_max 3, c_min 0.5, tau 2: odds (3 - 1) / (1 - 0.5) = 4. At |d| = 2, c = 0.5 + 2.5 / (1 + 4) = 1.

    At d = 0.5, 1: e^-1.5 = 0.223130, c = 0.5 + 2.5 / 1.892521 = 1.820990; sigmoid(0.910495) / sigmoid(0.5) =
    0.713101 / 0.622459 = 1.145619.
    """
    objective = MADPO(c_max=3.0, c_min=0.5, tau=2.0)
    torch.testing.assert_close(objective.coefficient(torch.tensor([2.0, 0.5])), torch.tensor([1.0, 1.820990]))
    found = weights(objective, [2.0, 0.5, 0.0, -2.0, -5.0])
    torch.testing.assert_close(found, torch.tensor([1.0, 1.145619, 1.0, 1.0, 1.0]), rtol=1e-5, atol=1e-5)


@settings(max_examples=20)
@given(gap=st.floats(-40, 40), margin=MARGIN, c_min=st.floats(0, 0.9), tau=st.floats(0.1, 10))
def test_madpo_of_one_coefficient_is_dpo(gap: float, margin: float, c_min: float, tau: float) -> None:
    inputs = inputs_of([gap], [margin])
    torch.testing.assert_close(MADPO(c_max=1.0, c_min=c_min, tau=tau)(inputs).loss, DPO()(inputs).loss)


@settings(max_examples=20)
@given(margin=MARGIN, c_max=st.floats(1.01, 8), c_min=st.floats(0, 0.95), tau=st.floats(0.5, 8))
def test_madpo_weighs_small_margins_more_and_large_ones_less(
    margin: float, c_max: float, c_min: float, tau: float
) -> None:
    """Below tau a pair that agrees with its label weighs 1 or more, above it 1 or less; never more than twice."""
    found = weights(MADPO(c_max=c_max, c_min=c_min, tau=tau), [margin]).item()
    assert math.isfinite(found) and 0 < found < 2 + 1e-5
    if margin >= tau:
        assert found <= 1 + 1e-6
    elif margin >= 0:
        assert found >= 1 - 1e-6
    elif margin > -tau:
        assert found <= 1 + 1e-6
    else:
        assert found == 1


def test_madpo_coefficient_falls() -> None:
    coefficient = MADPO().coefficient(torch.linspace(0, 40, 200))
    assert (coefficient.diff() <= 0).all() and coefficient[0] < 2.0 and coefficient[-1] == pytest.approx(0.5)


def test_uni_dpo_by_hand() -> None:
    """beta 2, gap (log p per token) -4/2 - -6/2 = 1, tau 2, gamma 3: (1 - sigmoid(2 - 2))^3 = 1/8.

    eta 0.5, margin 2: sigmoid(1) = 0.731059, so a = 0.0913823. z = -4/2 + 5/2 - (-6/2 + 5/2) = 1,
    -log sigmoid(2) = 0.126928: 0.0115990. The chosen response is likelier than under the reference: no NLL.
    """
    inputs = PairInputs(*(torch.tensor([x]) for x in (-4.0, -6.0, -5.0, -5.0, 2.0, 2.0, 2.0)))
    terms = UniDPO(eta=0.5)(inputs)
    torch.testing.assert_close(terms.loss, torch.tensor([0.0115990]), rtol=1e-5, atol=1e-6)
    fallen = replace(inputs, reference_chosen=torch.tensor([-3.0]))
    torch.testing.assert_close(UniDPO().sft_term(fallen), torch.tensor([2.0]))


@settings(max_examples=20)
@given(gap=st.floats(-20, 20))
def test_uni_dpo_without_its_weights_is_length_normalised_dpo(gap: float) -> None:
    inputs = inputs_of([gap], [1e4])
    plain = UniDPO(gamma=0.0, sft_weight=0.0)(inputs).loss
    torch.testing.assert_close(plain, LengthNormalisedDPO(beta=2.0)(inputs).loss)
    summed = UniDPO(beta=0.1, gamma=0.0, sft_weight=0.0, average=False)(inputs).loss
    torch.testing.assert_close(summed, DPO()(inputs).loss)


@settings(max_examples=20)
@given(margin=st.floats(-8, 8), more=st.floats(0.1, 4), gap=st.floats(-5, 5))
def test_uni_dpo_weighs_clear_and_unlearned_pairs_more(margin: float, more: float, gap: float) -> None:
    low, high = weights(UniDPO(), [margin, margin + more], gap).tolist()
    assert high > low
    learned, unlearned = (weights(UniDPO(), [margin], g).item() for g in (gap + more, gap))
    assert learned < unlearned


def test_the_supervised_term_of_uni_dpo_is_of_good_responses_that_became_less_likely() -> None:
    """Three chosen responses: fell and good, fell and not good, rose."""
    inputs = replace(
        inputs_of([-4.0, -4.0, -4.0], [1.0, 1.0, 1.0]),
        reference_chosen=torch.tensor([-3.0, -3.0, -5.0]),
        chosen_reward=torch.tensor([2.0, 1.0, 2.0]),
    )
    torch.testing.assert_close(UniDPO(good_reward=1.5).sft_term(inputs), torch.tensor([2.0, 0.0, 0.0]))
    torch.testing.assert_close(UniDPO().sft_term(inputs), torch.tensor([2.0, 2.0, 0.0]))
    with pytest.raises(ConfigError, match="chosen_reward"):
        UniDPO(good_reward=1.5)(replace(inputs, chosen_reward=None))


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"temperature": -1.0}])
def test_da_dpo_refuses_senseless_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DADPO(**bad)


@pytest.mark.parametrize("bad", [{"c_max": 0.9}, {"c_min": 1.0}, {"tau": 0.0}, {"steepness": 0.0}])
def test_madpo_refuses_senseless_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        MADPO(**bad)


def test_uni_dpo_supervises_nothing_where_policy_and_reference_differ_by_rounding() -> None:
    """So they do at the first step; which of two equal numbers is below the other follows from the packing."""
    inputs = inputs_of([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    reference = inputs.chosen_logprob.detach() + torch.tensor([-1e-4, 0.0, 1e-4])
    assert UniDPO().sft_term(replace(inputs, reference_chosen=reference)).tolist() == [0.0, 0.0, 0.0]
