"""APO, EXO and NCA: losses with a minimum or a direction of their own for each response."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.losses.anchored import APODown, APOZero
from mmrlhf.losses.noise_contrastive import NCA
from mmrlhf.losses.objective import Objective, PairInputs
from mmrlhf.losses.reverse_kl import EXO

RATIO = st.floats(-60, 60)


def loss(objective: Objective, chosen: Tensor, rejected: Tensor) -> Tensor:
    """The loss (P,) of log-ratios (P,)."""
    zero = torch.zeros_like(chosen)
    return objective(PairInputs(chosen, rejected, zero, zero)).loss


def gradients(objective: Objective, chosen: float, rejected: float) -> tuple[float, float]:
    good, bad = torch.tensor([chosen], requires_grad=True), torch.tensor([rejected], requires_grad=True)
    loss(objective, good, bad).sum().backward()
    assert good.grad is not None and bad.grad is not None
    return good.grad.item(), bad.grad.item()


@pytest.mark.parametrize("objective", [APOZero(), APODown(), EXO(label_smoothing=0.2), NCA()], ids=repr)
@settings(max_examples=12)
@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20))
def test_gradients_are_those_of_finite_differences(objective: Objective, chosen: float, rejected: float) -> None:
    step, found = 0.05, gradients(objective, chosen, rejected)
    for side in range(2):
        moved = torch.tensor([[chosen, rejected]] * 2)
        moved[0, side] += step
        moved[1, side] -= step
        up, down = loss(objective, moved[:, 0], moved[:, 1]).double().tolist()
        assert found[side] == pytest.approx((up - down) / (2 * step), abs=2e-4)


@settings(max_examples=12)
@given(chosen=RATIO, rejected=RATIO)
def test_apo_zero_pushes_the_two_apart(chosen: float, rejected: float) -> None:
    good, bad = gradients(APOZero(), chosen, rejected)
    assert good < 0 < bad
    found = loss(APOZero(), torch.tensor([chosen]), torch.tensor([rejected])).item()
    assert 0 <= found <= 2


@settings(max_examples=12)
@given(chosen=st.floats(-40, 40), rejected=st.floats(-40, 40))
def test_apo_down_pushes_the_rejected_one_down_and_the_chosen_one_where_they_are_level(
    chosen: float, rejected: float
) -> None:
    assert gradients(APODown(), chosen, rejected)[1] > 0
    # d/dr of sigmoid(r) - sigmoid(r - r_rejected): 0 where r_rejected is 0, down where it is far below
    assert gradients(APODown(), 0.0, 0.0)[0] == pytest.approx(0, abs=1e-8)
    assert gradients(APODown(), 0.0, -30.0)[0] > 0


def test_apo_by_hand() -> None:
    """beta 1, log-ratios 1 and -1: sigmoid(-1) + sigmoid(-1) = 0.537883; sigmoid(1) + sigmoid(-2) = 0.850261."""
    one = torch.ones(1)
    torch.testing.assert_close(loss(APOZero(beta=1.0), one, -one), torch.tensor([0.537883]))
    torch.testing.assert_close(loss(APODown(beta=1.0), one, -one), torch.tensor([0.850261]))


@settings(max_examples=12)
@given(smoothing=st.floats(0.01, 0.49), gap=st.floats(-80, 80))
def test_exo_is_a_divergence_and_zero_where_policy_and_label_agree(smoothing: float, gap: float) -> None:
    objective = EXO(label_smoothing=smoothing)
    zero = torch.zeros(1)
    assert loss(objective, torch.tensor([gap]), zero).item() >= -1e-6
    agreed = torch.logit(torch.tensor([1 - smoothing])) / 0.1
    assert loss(objective, agreed, zero).item() == pytest.approx(0, abs=1e-5)
    assert gradients(objective, agreed.item(), 0.0)[0] == pytest.approx(0, abs=1e-5)


def test_exo_by_hand() -> None:
    """At gap 0, p = 1/2: log(1/2) - [log(1 - e) + log e] / 2, for e = 0.2: -0.693147 + 0.916291 = 0.223144."""
    zero = torch.zeros(1)
    torch.testing.assert_close(loss(EXO(label_smoothing=0.2), zero, zero), torch.tensor([0.223144]))
    for bad in (0.0, 0.5):
        with pytest.raises(ConfigError, match="label_smoothing"):
            EXO(label_smoothing=bad)


@settings(max_examples=12)
@given(rejected=RATIO)
def test_nca_holds_the_chosen_response_where_its_sigmoid_is_two_thirds(rejected: float) -> None:
    best = torch.logit(torch.tensor(2 / 3)).item() / 0.1
    assert gradients(NCA(), best, rejected)[0] == pytest.approx(0, abs=1e-6)
    assert gradients(NCA(), best - 5, rejected)[0] < 0 < gradients(NCA(), best + 5, rejected)[0]
    assert gradients(NCA(), best, rejected)[1] > 0


def test_nca_by_hand() -> None:
    """beta 1, log-ratios 1 and -1: 0.313262 + (1.313262 + 0.313262) / 2 = 1.126524."""
    one = torch.ones(1)
    torch.testing.assert_close(loss(NCA(beta=1.0), one, -one), torch.tensor([1.126524]))
