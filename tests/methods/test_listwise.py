"""Plackett-Luce as a method: K = 2 is DPO, micro-batches change nothing, rankings of every kind are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.methods_under_test import total
from stand_ins.packed_toy import ToyModel, make_group

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.plackett_luce import PlackettLuce, plackett_luce
from mmrlhf.methods.listwise import RankingModule
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.methods.preference import PreferenceModule
from mmrlhf.tokens.packing import pack_groups


def build(objective: PlackettLuce | None = None, pairs: PairScheme | None = None) -> RankingModule:
    return RankingModule(ToyModel(), objective or PlackettLuce(), pairs or PairScheme(), OptimSettings(), total_steps=1)


def test_two_responses_are_dpo() -> None:
    groups = [make_group(number, (1, 2)) for number in range(5)]
    pairwise = PreferenceModule(ToyModel(), DPO(), PairScheme(), OptimSettings(), total_steps=1)
    assert total(build(), groups, 1) == pytest.approx(total(pairwise, groups, 1), rel=1e-5)


def test_a_step_is_the_mean_over_rankings_whatever_the_micro_batches() -> None:
    groups = [make_group(1), make_group(2, (1, 2, 3)), make_group(3, (1, 1)), make_group(4, weight=0.0)]
    expected = []
    for group in groups[:2]:
        batch = pack_groups([group])
        scores = 0.1 * (ToyModel()(batch).logprob - batch.columns["reference_logprob"])
        expected.append(plackett_luce(scores, batch.columns["rank"], batch.group_of_response, num_groups=1))
    mean = float(torch.cat(expected).mean().detach())
    assert total(build(), groups, 1) == pytest.approx(mean, rel=1e-5), "a tied and a filler group do not count"
    assert total(build(), groups, 4) == pytest.approx(mean, rel=1e-5)


def test_explicit_pairs_are_read_as_a_ranking() -> None:
    """Pairs without ranks: 2 over 0 over 1 is the ranking 2, 3, 1."""
    nan = float("nan")
    by_pairs = replace(make_group(1, (nan, nan, nan)), pairs=((2, 0), (0, 1), (2, 1)))
    assert total(build(), [by_pairs], 1) == pytest.approx(total(build(), [make_group(1, (2, 3, 1))], 1), rel=1e-5)


def test_rewards_can_rank() -> None:
    group = make_group(1, (1, 1, 1))
    reward = torch.tensor([0.5, -1.0, 2.0])
    group = replace(group, columns={**group.columns, "reward": reward})
    by_reward = total(build(pairs=PairScheme(rank_by="reward")), [group], 1)
    assert by_reward == pytest.approx(total(build(), [make_group(1, (2, 3, 1))], 1), rel=1e-5)


@pytest.mark.parametrize("pairs", [PairScheme(scheme="hardest"), PairScheme(ties="even"), PairScheme(min_margin=0.0)])
def test_chosen_pairs_are_refused(pairs: PairScheme) -> None:
    with pytest.raises(ConfigError, match="whole ranking"):
        build(pairs=pairs).count(pack_groups([make_group(1)]))
