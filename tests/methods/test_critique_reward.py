"""Reward loss: critiques counted once per response, scores compared over pairs, ties only with each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.packed_toy import ToyModel, make_group

from mmrlhf.errors import ConfigError
from mmrlhf.methods.critique_reward import CritiqueRewardModule, RewardWeights
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tokens.packing import pack_groups


def losses(module: CritiqueRewardModule, groups: list) -> dict[str, torch.Tensor]:
    batch = pack_groups(groups)
    counts = module.count(batch)
    sums = module.loss_sums(batch, counts, StepRecord())
    return {name: sums[name] / counts.divisors[name] for name in module.part_weights}


def build(**weights: float) -> CritiqueRewardModule:
    return CritiqueRewardModule(ToyModel(), RewardWeights(**weights), OptimSettings(), total_steps=1)


def test_parts_by_hand() -> None:
    # Ranks 1, 2, 2: the pairs are (0, 1) and (0, 2), the tie is (1, 2).
    groups = [make_group(1, (1, 2, 2))]
    model = ToyModel()
    outputs = model(pack_groups(groups))
    r = model.score(outputs).detach()
    found = losses(build(tie=1.0, centring=1.0), groups)
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(found["critique"], -(outputs.logprob / outputs.num_tokens).mean())
    torch.testing.assert_close(found["score"], (softplus(r[1] - r[0]) + softplus(r[2] - r[0])) / 2)
    torch.testing.assert_close(found["ties"], (r[1] - r[2]) ** 2)
    torch.testing.assert_close(found["centring"], ((r[0] + r[1]) ** 2 + (r[0] + r[2]) ** 2) / 2)


def test_ranking_at_once_by_hand() -> None:
    """Ranks 2, 1, 3: log(e^r1 + e^r0 + e^r2) - r1 + log(e^r0 + e^r2) - r0; the mean over queries with a ranking."""
    groups = [make_group(1, (2, 1, 3)), make_group(2, (1, 2)), make_group(3, (1, 1)), make_group(4, weight=0.0)]
    r = ToyModel().score(ToyModel()(pack_groups(groups))).detach()
    first = r[:3].logsumexp(0) - r[1] + r[[0, 2]].logsumexp(0) - r[0]
    second = torch.nn.functional.softplus(r[4] - r[3])
    module = CritiqueRewardModule(ToyModel(), RewardWeights(score_over="ranking"), OptimSettings(), total_steps=1)
    torch.testing.assert_close(losses(module, groups)["score"], (first + second) / 2)
    pair = [make_group(2, (1, 2))]
    torch.testing.assert_close(losses(module, pair)["score"], losses(build(), pair)["score"])
    best = CritiqueRewardModule(ToyModel(), RewardWeights(score_over="best"), OptimSettings(), total_steps=1)
    of_best = r[:3].logsumexp(0) - r[1]
    torch.testing.assert_close(losses(best, groups)["score"], (of_best + second) / 2)
    torch.testing.assert_close(losses(best, pair)["score"], losses(build(), pair)["score"])
    with pytest.raises(ConfigError, match="whole ranking"):
        CritiqueRewardModule(
            ToyModel(), RewardWeights(score_over="ranking"), OptimSettings(), total_steps=1,
            pairs=PairScheme(scheme="hardest"),
        )  # fmt: skip


def test_the_released_weighting_by_hand() -> None:
    """Two responses: L(chosen) + L(rejected), twice the mean over responses. Ranks 1, 2, 3: each response is in two of
    the three pairs, so the mean over pairs of the two sums is 2 (L1 + L2 + L3) / 3. Tied ones are in no pair."""
    for ranks, expected in (((1, 2), (1, 1)), ((1, 2, 3), (2 / 3, 2 / 3, 2 / 3)), ((1, 1, 2), (1 / 2, 1 / 2, 1))):
        groups = [make_group(1, ranks)]
        outputs = ToyModel()(pack_groups(groups))
        per_token = -outputs.logprob / outputs.num_tokens
        module = CritiqueRewardModule(ToyModel(), RewardWeights(critique_over="pairs"), OptimSettings(), total_steps=1)
        found = losses(module, groups)["critique"]
        torch.testing.assert_close(found, (per_token * torch.tensor(expected)).sum())
        if len(ranks) == 2:
            torch.testing.assert_close(found, 2 * losses(build(), groups)["critique"])


def test_more_pairs_do_not_weigh_critiques_more() -> None:
    """Six pairs or none: a response's critique counts once."""
    apart, tied = make_group(1, (1, 2, 3, 4)), make_group(1, (1, 1, 1, 1))
    torch.testing.assert_close(losses(build(), [apart])["critique"], losses(build(), [tied])["critique"])


def test_without_critiques_only_scores_count() -> None:
    groups = [make_group(1, (1, 2), labels=False)]
    with_part, without = build(), build(critique=0.0)
    assert losses(without, groups).keys() == {"score"}
    assert pack_groups(groups).label_ids.numel() == 0
    assert float(with_part.count(pack_groups(groups)).divisors["critique"]) == 0
    assert RewardWeights().without_critique() == RewardWeights(critique=0.0)


def test_ties_are_within_groups_of_known_rank_and_positive_weight() -> None:
    nan = float("nan")
    groups = [make_group(1, (1, 1)), make_group(2, (1, nan, nan)), make_group(3, (2, 2), weight=0.0)]
    ties = build(tie=1.0).count(pack_groups(groups)).ties
    assert ties is not None
    assert list(zip(ties.chosen.tolist(), ties.rejected.tolist(), strict=True)) == [(0, 1)]


def test_what_a_cut_made_equal_is_no_tie_and_no_pair_of_a_dimension() -> None:
    """Of three responses the first two read the same: their gradient would be 0, and would hide the third's."""
    group = make_group(1, (1, 1, 1))
    first = replace(group.branches[0], truncated=3)
    group = replace(group, branches=(first, first, group.branches[2]))
    batch = pack_groups([group])
    batch = replace(batch, columns={**batch.columns, "score_ethics": torch.tensor([3.0, 2.0, 1.0])})
    model = ToyModel()
    model.score_head = torch.nn.Linear(model.score_head.in_features, 2)
    weights = RewardWeights(critique=0.0, tie=1.0, dimensions=1.0)
    module = CritiqueRewardModule(model, weights, OptimSettings(), total_steps=1, dimensions=("ethics",))
    counts = module.count(batch)
    assert counts.divisors["ties"] == 2 and counts.divisors["dimensions"] == 2
    sums = module.loss_sums(batch, counts, StepRecord())
    rewards, ethics = model.scores(model(batch)).detach().T
    torch.testing.assert_close(sums["ties"].detach(), 2 * (rewards[0] - rewards[2]) ** 2)
    torch.testing.assert_close(sums["dimensions"].detach(), 2 * torch.nn.functional.softplus(ethics[2] - ethics[0]))


def test_heldout_scores_are_the_rewards() -> None:
    module = build()
    batch = pack_groups([make_group(1, (1, 2, 3))])
    record = StepRecord()
    scores = module.score_pairs(batch, module.count(batch), record)
    rewards = module.model.score(module.model(batch)).tolist()
    assert scores.keys == ("group1",) * 3
    assert scores.chosen == pytest.approx((rewards[0], rewards[0], rewards[1]))
    assert scores.rejected == pytest.approx((rewards[1], rewards[2], rewards[2]))
    share = sum(c > r for c, r in zip(scores.chosen, scores.rejected, strict=True)) / 3
    assert record.reduce(lambda tensor, _: tensor)["accuracy"] == pytest.approx(share)


@pytest.mark.parametrize("scheme", [PairScheme("hardest"), PairScheme(ties="even"), PairScheme("adjacent")], ids=repr)
def test_heldout_pairs_are_all_pairs_whatever_is_trained_on(scheme: PairScheme) -> None:
    """Ranks 1, 2, 2, 3 are five pairs; `hardest` trains on one of them, `even` on seven."""
    batch = pack_groups([make_group(1, (1, 2, 2, 3))])
    module = CritiqueRewardModule(ToyModel(), RewardWeights(), OptimSettings(), total_steps=1, pairs=scheme)
    found = module.score_pairs(batch, module.count(batch), StepRecord())
    assert len(found.keys) == 5
    assert found == build().score_pairs(batch, build().count(batch), StepRecord())


def test_dimensions_are_compared_by_their_own_scores() -> None:
    """Scores 3, 1, nan on `helpfulness` and 2, 2, 5 on `ethics`: pairs (0, 1), then (2, 0) and (2, 1)."""
    nan = float("nan")
    batch = pack_groups([make_group(1, (1, 2, 3))])
    columns = {"score_helpfulness": torch.tensor([3.0, 1.0, nan]), "score_ethics": torch.tensor([2.0, 2.0, 5.0])}
    batch = replace(batch, columns={**batch.columns, **columns})
    model = ToyModel()
    model.score_head = torch.nn.Linear(model.score_head.in_features, 3)
    weights = RewardWeights(dimensions=0.5)
    module = CritiqueRewardModule(model, weights, OptimSettings(), total_steps=1, dimensions=("helpfulness", "ethics"))
    counts, record = module.count(batch), StepRecord()
    assert float(counts.divisors["dimensions"]) == 3 and module.part_weights["dimensions"] == 0.5
    sums = module.loss_sums(batch, counts, record)
    _, helpful, ethics = model.scores(model(batch)).detach().T
    softplus = torch.nn.functional.softplus
    expected = softplus(helpful[1] - helpful[0]) + softplus(ethics[0] - ethics[2]) + softplus(ethics[1] - ethics[2])
    torch.testing.assert_close(sums["dimensions"].detach(), expected)
    found = record.reduce(lambda tensor, _: tensor)
    assert found["accuracy_helpfulness"] == float(helpful[0] > helpful[1])
    (gradient,) = torch.autograd.grad(sums["dimensions"], model.score_head.weight)
    assert gradient[0].abs().sum() == 0 and (gradient[1:].abs().sum(1) > 0).all(), "the reward is left alone"
