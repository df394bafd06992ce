"""beta-DPO, ODPO, mDPO, Plackett-Luce and the rivals of MM-DPO beside what their authors' code computes.

The numbers come from derivations in numpy and float64, written down here from the formulas that the public code
evaluates; no code of theirs is copied. Read were

- beta-DPO: junkangwu/beta-DPO, `trainers.py` (its preference loss with `mode_loss=beta_DPO`, the masked mean);
- ODPO: rycolab/odpo, `trainers.py` (its preference loss with `offset`);
- mDPO: luka-group/mDPO, `mdpo_trainer.py` (its `dpo_loss`);
- Plackett-Luce: allegro/allRank, `listMLE.py`: the same likelihood, from learning to rank, with descending labels;
- DA-DPO: Artanic30/DA-DPO, `llava/train/da_dpo.py` (its `dpo_loss`);
- MADPO: sirano1004/Margin-Apative-Direct-Preference-Optimization, `utils/loss_functions.py`;
- Uni-DPO: pspdada/Uni-DPO, `Math/train/scripts/trainer.py` (its `uni_dpo_loss`);
- gamma-PO: sunjie279/gammaPO, `scripts/xpo_trainer.py` (`gm-dpo`, without the queue of earlier gaps);
- AMaPO: Shiroha-Offical/AMaPO, `scripts/amapo_trainer.py` (its `amapo_loss`).

`docs/losses.md` says where ours differ.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrlhf.losses.adaptive_margin import AMaPO
from mmrlhf.losses.call_beta import BetaDPO
from mmrlhf.losses.difficulty_beta import DADPO
from mmrlhf.losses.dynamic_margin import GammaPO
from mmrlhf.losses.image_conditional import MDPO, anchor, image_conditional
from mmrlhf.losses.margin_weight import MADPO
from mmrlhf.losses.objective import PairInputs
from mmrlhf.losses.offset import ODPO
from mmrlhf.losses.plackett_luce import plackett_luce
from mmrlhf.losses.quality_weight import UniDPO

CHOSEN = np.array([-41.0, -12.5, -77.25, -30.0, -5.5, -18.0])
REJECTED = np.array([-44.0, -11.0, -80.0, -52.0, -6.25, -17.5])
REFERENCE_CHOSEN = np.array([-43.0, -12.0, -78.0, -33.0, -6.5, -18.5])
REFERENCE_REJECTED = np.array([-43.5, -11.5, -77.5, -34.0, -6.0, -19.0])
DAMAGED = np.array([-46.0, -12.25, -79.0, -30.5, -9.0, -17.0])
REFERENCE_DAMAGED = np.array([-46.5, -12.0, -80.0, -33.0, -9.5, -18.0])
CHOSEN_TOKENS, REJECTED_TOKENS = np.array([20, 6, 30, 12, 3, 9]), np.array([22, 5, 40, 20, 4, 7])
REWARDS = np.array([[2.5, 0.5], [1.0, 0.75], [3.0, -1.0], [0.25, 0.125], [1.5, 0.5], [4.0, 1.5]])


def tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@pytest.fixture
def inputs() -> PairInputs:
    return PairInputs(
        tensor(CHOSEN),
        tensor(REJECTED),
        tensor(REFERENCE_CHOSEN),
        tensor(REFERENCE_REJECTED),
        margin=tensor(REWARDS[:, 0] - REWARDS[:, 1]),
        chosen_tokens=tensor(CHOSEN_TOKENS),
        rejected_tokens=tensor(REJECTED_TOKENS),
        chosen_reward=tensor(REWARDS[:, 0]),
    )


def log_sigmoid(values: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -values)


def gaps() -> np.ndarray:
    return (CHOSEN - REJECTED) - (REFERENCE_CHOSEN - REFERENCE_REJECTED)


def close(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_odpo(inputs: PairInputs, alpha: float) -> None:
    """-log sigmoid(beta z - alpha log(score of chosen - score of rejected))."""
    offset = alpha * np.log(REWARDS[:, 0] - REWARDS[:, 1])
    close(ODPO(beta=0.25, alpha=alpha)(inputs).loss, -log_sigmoid(0.25 * gaps() - offset))


def test_odpo_golden(inputs: PairInputs) -> None:
    """The numbers themselves, for beta 0.25 and alpha 1."""
    golden = [0.727801, 0.278394, 1.020647, 0.000656, 0.549055, 1.437478]
    np.testing.assert_allclose(ODPO(beta=0.25)(inputs).loss.numpy(), golden, atol=1e-5)


def test_mdpo(inputs: PairInputs) -> None:
    """-log sigmoid(beta z) - log sigmoid(beta z of the images) - log sigmoid(beta log-ratio of the chosen)."""
    beta, ratio = 0.1, CHOSEN - REFERENCE_CHOSEN
    image = (CHOSEN - DAMAGED) - (REFERENCE_CHOSEN - REFERENCE_DAMAGED)
    expected = -log_sigmoid(beta * gaps()) - log_sigmoid(beta * image) - log_sigmoid(beta * ratio)
    damaged = tensor(DAMAGED - REFERENCE_DAMAGED)
    ours = MDPO(beta=beta)
    weighted = ours.image_weight * image_conditional(tensor(ratio), damaged, beta=beta)
    weighted = weighted + ours.anchor_weight * anchor(tensor(ratio), beta=beta, shift=ours.anchor_shift)
    close(ours(inputs).loss + weighted, expected)


def beta_dpo(mean: float, alpha: float, kept: np.ndarray, beta: float = 0.1) -> tuple[float, float]:
    """beta and loss of the authors' code, once the running mean of z and the kept pairs are known.

    beta_used = beta (1 + a (mean of the kept z - running mean of z)), at least 1e-3; the loss is the kept pairs' mean.
    """
    used = max(beta * (1 + alpha * (gaps()[kept].mean() - mean)), 1e-3)
    return used, float(-log_sigmoid(used * gaps())[kept].mean())


@pytest.mark.parametrize("mean", [0.0, 1.5, 4.0])
def test_beta_dpo_without_a_filter(inputs: PairInputs, mean: float) -> None:
    """Ours reads M as beta_0 times z, as the paper does; theirs reads z, so their `a` is alpha * beta_0 here."""
    beta, loss = beta_dpo(mean, alpha=0.06, kept=np.arange(6))
    terms = BetaDPO(beta=0.1, alpha=0.6, baseline=0.1 * mean, filtered=0.0)(inputs)
    close(terms.beta, np.full(6, beta))
    assert float(terms.loss.mean()) == pytest.approx(loss, rel=1e-5)


def test_beta_dpo_with_its_filter(inputs: PairInputs) -> None:
    """int(6 * 0.8) = 4 pairs stay, as with theirs; theirs are drawn with Gaussian weights, ours are the likeliest."""
    weight = np.exp(-0.5 * ((gaps() - gaps().mean()) / gaps().std(ddof=1)) ** 2)
    kept = np.sort(np.argsort(-weight)[: int(6 * 0.8)])
    beta, loss = beta_dpo(0.0, alpha=0.06, kept=kept)
    terms = BetaDPO(beta=0.1, alpha=0.6, filtered=0.2)(inputs)
    assert np.flatnonzero(terms.loss.numpy()).tolist() == kept.tolist() and len(kept) == 4
    assert terms.beta[0].item() == pytest.approx(beta, rel=1e-5)
    assert float(terms.loss.sum() / len(kept)) == pytest.approx(loss, rel=1e-5)


def test_beta_dpo_has_their_lower_bound(inputs: PairInputs) -> None:
    beta, loss = beta_dpo(1e4, alpha=0.06, kept=np.arange(6))
    terms = BetaDPO(beta=0.1, alpha=0.6, baseline=1e3, filtered=0.0)(inputs)
    assert beta == 1e-3 and terms.beta[0].item() == pytest.approx(1e-3)
    assert float(terms.loss.mean()) == pytest.approx(loss, rel=1e-5)


def list_mle(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sorted by descending label: the sum over places of log(sum of exp from there on) - score."""
    ordered = scores[np.argsort(-labels)]
    tails = np.log(np.cumsum(np.exp(ordered[::-1]))[::-1])
    return float((tails - ordered).sum())


@pytest.mark.parametrize("seed", range(5))
def test_plackett_luce_is_list_mle(seed: int) -> None:
    """Without ties; where labels are tied, list MLE draws an order and ours compares neither with the other."""
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(0, 3, 7), rng.permutation(7).astype(float)
    found = plackett_luce(tensor(scores), tensor(7 - labels), torch.zeros(7, dtype=torch.long), num_groups=1)
    close(found, np.array([list_mle(scores, labels)]))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return np.exp(log_sigmoid(values))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_da_dpo(inputs: PairInputs, alpha: float) -> None:
    """beta times (|difference of the two scores| + 1) alpha, on the log-ratio gap; negative differences, too."""
    margin = (REWARDS[:, 0] - REWARDS[:, 1]) * np.array([1, -1, 1, -1, 1, 1])
    expected = -log_sigmoid(0.1 * (np.abs(margin) + 1) * alpha * gaps())
    close(DADPO(beta=0.1, alpha=alpha)(replace(inputs, margin=tensor(margin))).loss, expected)


@pytest.mark.parametrize("tau", [0.6, 2.0])
def test_madpo(inputs: PairInputs, tau: float) -> None:
    """The first response is the chosen one; below -tau a pair weighs 1."""
    margin = (REWARDS[:, 0] - REWARDS[:, 1]) * np.array([1, -1, 1, -1, 1, -1])
    odds = (3.0 - 1) / (1 - 0.25)
    c = 0.25 + (3.0 - 0.25) / (1 + odds * np.exp(1.5 * (np.abs(margin) - tau)))
    weight = np.where(margin > -tau, sigmoid(c * margin) / sigmoid(margin), 1.0)
    ours = MADPO(beta=0.1, c_max=3.0, c_min=0.25, steepness=1.5, tau=tau)
    close(ours(replace(inputs, margin=tensor(margin))).loss, -weight * log_sigmoid(0.1 * gaps()))
    assert (margin < -tau).any()


def test_uni_dpo(inputs: PairInputs) -> None:
    """With lengths taken out (`dpo_length_norm`): three log-sigmoid factors, and lambda times a masked NLL."""
    beta, eta, tau, gamma, weight, good = 2.0, 0.7, 0.4, 3.0, 0.2, 1.2
    chosen, rejected = CHOSEN / CHOSEN_TOKENS, REJECTED / REJECTED_TOKENS
    reference_chosen, reference_rejected = REFERENCE_CHOSEN / CHOSEN_TOKENS, REFERENCE_REJECTED / REJECTED_TOKENS
    policy, reference = chosen - rejected, reference_chosen - reference_rejected
    quality = sigmoid(eta * (REWARDS[:, 0] - REWARDS[:, 1]))
    performance = (1 - sigmoid(beta * policy - tau)) ** gamma
    wanted = (reference_chosen > chosen) & (REWARDS[:, 0] >= good)
    expected = -quality * performance * log_sigmoid(beta * (policy - reference)) - weight * wanted * chosen
    ours = UniDPO(beta=beta, eta=eta, tau=tau, gamma=gamma, sft_weight=weight, good_reward=good)
    found = ours(replace(inputs, reference_chosen=tensor(REFERENCE_CHOSEN)))
    close(found.loss, expected)


@pytest.mark.parametrize("target", [0.5, 4.0])
def test_gamma_po(inputs: PairInputs, target: float) -> None:
    """Twenty steps of mirror descent on the shares, of size min(1/2 / tau, 1); ours is where they lead."""
    rewards, tau, shares = 0.1 * gaps(), 10.0, np.full(6, 1 / 6)
    size = min(0.5 / tau, 1.0)
    for _ in range(20):
        slope = tau * (1 + np.log(6 * (shares + 1e-10))) + target * sigmoid(target * 6 * shares - rewards)
        shares = shares * np.exp(-size * slope)
        shares = shares / shares.sum()
    offset = target * (6 * shares - 1)
    ours = GammaPO(beta=0.1, target_margin=target, tau=tau)
    np.testing.assert_allclose(ours.scale(inputs).m.numpy(), offset, atol=1e-5)
    np.testing.assert_allclose(ours(inputs).loss.numpy(), -log_sigmoid(rewards - offset), rtol=1e-5)
    assert np.abs(offset).max() > 0.005


def test_amapo(inputs: PairInputs) -> None:
    """The batch's mean and its standard deviation with n - 1, of the policy's own gaps per token."""
    gap = CHOSEN / CHOSEN_TOKENS - REJECTED / REJECTED_TOKENS
    mean, deviation = gap.mean(), gap.std(ddof=1)
    margin = 2.5 * np.where(gap - mean < 0, np.exp((mean - gap) / deviation * mean), 0.0)
    close(AMaPO(beta=2.5)(inputs).loss, -log_sigmoid(2.5 * gap - margin))
    assert 0 < (margin > 0).sum() < 6
