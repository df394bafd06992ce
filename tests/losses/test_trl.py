"""The same numbers as TRL 1.16.0 on the same log-probabilities; trl_numbers.json is written by make_trl_numbers.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmrlhf.losses.anchored import APODown, APOZero
from mmrlhf.losses.bradley_terry import bradley_terry, centring
from mmrlhf.losses.dpo import DPO, ConservativeDPO, RobustDPO
from mmrlhf.losses.length_normalised import LengthNormalisedDPO, SimPO
from mmrlhf.losses.likelihood_weight import WPO
from mmrlhf.losses.mixture import MPO
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.losses.noise_contrastive import NCA
from mmrlhf.losses.objective import Objective, PairInputs
from mmrlhf.losses.optimal_transport import AOT
from mmrlhf.losses.other_links import IPO, HingeDPO
from mmrlhf.losses.prospect import KTO
from mmrlhf.losses.reverse_kl import EXO

TRL = json.loads(Path(__file__).with_name("trl_numbers.json").read_text())
MATCHES: dict[str, Objective] = {
    "sigmoid": DPO(beta=0.1),
    "hinge": HingeDPO(beta=0.1),
    "cdpo": ConservativeDPO(beta=0.1, label_smoothing=0.2),
    "ipo": IPO(beta=0.1),
    "robust": RobustDPO(beta=0.1, label_smoothing=0.2),
    "sigmoid_norm": LengthNormalisedDPO(beta=5.0),
    "wpo": WPO(beta=0.1),
    "mpo": MPO(beta=0.1),
    "simpo": SimPO(beta=2.0, target_margin=1.0),
    "apo_zero": APOZero(beta=0.1),
    "apo_down": APODown(beta=0.1),
    "exo_pair": EXO(beta=0.1, label_smoothing=0.2),
    "nca_pair": NCA(beta=0.1),
}


@pytest.fixture
def inputs() -> PairInputs:
    return PairInputs(**{name: torch.tensor(values) for name, values in TRL["inputs"].items()})


@pytest.mark.parametrize("name", MATCHES)
def test_losses_match(name: str, inputs: PairInputs) -> None:
    torch.testing.assert_close(MATCHES[name](inputs).loss, torch.tensor(TRL["losses"][name]), rtol=1e-5, atol=1e-5)


def test_sorted_gaps_match(inputs: PairInputs) -> None:
    """TRL's AOT is of a batch: the pairs' mean."""
    found = AOT(beta=0.1, label_smoothing=0.2)(inputs).loss.mean()
    torch.testing.assert_close(found, torch.tensor(TRL["losses"]["aot_mean"][0]), rtol=1e-5, atol=1e-5)


def test_kto_matches_once_the_kl_is_given(inputs: PairInputs) -> None:
    objective, labels = KTO(beta=0.1, undesirable_weight=1.5), torch.tensor([1.0] * 8 + [0.0] * 8)
    found = objective.response_loss(torch.cat(objective.scores(inputs)), labels, torch.tensor(1.5))
    torch.testing.assert_close(found, torch.tensor(TRL["losses"]["kto"]), rtol=1e-5, atol=1e-5)


def test_mmdpo_without_margin_effect_is_trls_dpo(inputs: PairInputs) -> None:
    torch.testing.assert_close(MMDPO(w=0.0)(inputs).loss, torch.tensor(TRL["losses"]["sigmoid"]), rtol=1e-5, atol=1e-5)


def test_reward_losses_match() -> None:
    margin = torch.tensor(TRL["inputs"]["margin"])
    chosen, rejected = margin / 2 + 0.3, 0.3 - margin / 2
    plain = bradley_terry(chosen, rejected)
    torch.testing.assert_close(plain, torch.tensor(TRL["losses"]["reward"]), rtol=1e-5, atol=1e-5)
    centred = plain + 0.01 * centring(chosen, rejected)
    torch.testing.assert_close(centred, torch.tensor(TRL["losses"]["reward_centred"]), rtol=1e-5, atol=1e-5)
