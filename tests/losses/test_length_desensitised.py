"""LD-DPO's loss: numbers worked by hand, DPO as its limit, and what lies beyond the shared length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.length_desensitised import LDDPO
from mmrlhf.losses.objective import PairInputs

NATS = st.floats(-30, 0)
SIDES = ("chosen", "rejected")


def inputs_of(**values: float) -> PairInputs:
    return PairInputs(**{name: torch.tensor([value]) for name, value in values.items()})


def test_by_hand() -> None:
    """The chosen response has two tokens more than the rejected one's three.

    Policy: -1 -1 -1 | -2 -3 and -2 -1 -2; reference: -1 -2 -1 | -3 -4 and -1 -1 -1. With alpha 0.5 the chosen response
    says -3 - 0.5 * 5 = -5.5 and -4 - 0.5 * 7 = -7.5: log-ratio 2; the rejected one -5 + 3 = -2. z = 4, and with beta
    0.5 log(1 + e^-2) = 0.126928. DPO: z = (-8 + 11) + 2 = 5, log(1 + e^-2.5) = 0.078889.
    """
    inputs = inputs_of(
        chosen_logprob=-8.0, reference_chosen=-11.0, chosen_shared=-3.0, reference_chosen_shared=-4.0,
        rejected_logprob=-5.0, reference_rejected=-3.0, rejected_shared=-5.0, reference_rejected_shared=-3.0,
    )  # fmt: skip
    terms = LDDPO(beta=0.5, alpha=0.5)(inputs)
    torch.testing.assert_close(terms.loss, torch.tensor([0.126928]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.reward_chosen, torch.tensor([1.0]))
    torch.testing.assert_close(terms.reward_rejected, torch.tensor([-1.0]))
    torch.testing.assert_close(DPO(beta=0.5)(inputs).loss, torch.tensor([0.078889]), rtol=1e-5, atol=1e-6)


@settings(max_examples=20)
@given(
    whole=st.lists(NATS, min_size=4, max_size=4), shared=st.lists(NATS, min_size=4, max_size=4), alpha=st.floats(0, 1)
)
def test_dpo_is_a_limit(whole: list[float], shared: list[float], alpha: float) -> None:
    """alpha = 1 is DPO whatever is shared; alpha = 0 is DPO on the shared tokens; responses of one length: DPO."""
    names = ("chosen_logprob", "rejected_logprob", "reference_chosen", "reference_rejected")
    parts = ("chosen_shared", "rejected_shared", "reference_chosen_shared", "reference_rejected_shared")
    inputs = inputs_of(**dict(zip((*names, *parts), (*whole, *shared), strict=True)))
    torch.testing.assert_close(LDDPO(alpha=1.0)(inputs).loss, DPO()(inputs).loss)
    first = inputs_of(**dict(zip(names, shared, strict=True)))
    torch.testing.assert_close(LDDPO(alpha=0.0)(inputs).loss, DPO()(first).loss)
    equal = inputs_of(**dict(zip((*names, *parts), (*whole, *whole), strict=True)))
    torch.testing.assert_close(LDDPO(alpha=alpha)(equal).loss, DPO()(equal).loss)


@pytest.mark.parametrize("missing", ["chosen_shared", "reference_rejected_shared"])
def test_what_is_missing_is_named(missing: str) -> None:
    names = [f"{kind}{side}_shared" for kind in ("", "reference_") for side in SIDES]
    whole = {"chosen_logprob": -1.0, "rejected_logprob": -1.0, "reference_chosen": -1.0, "reference_rejected": -1.0}
    with pytest.raises(ConfigError, match=missing):
        LDDPO()(replace(inputs_of(**whole, **dict.fromkeys(names, -1.0)), **{missing: None}))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_senseless_weights_are_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        LDDPO(alpha=alpha)
