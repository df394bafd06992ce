"""KTO as a method: single responses train, micro-batches change nothing, the KL is of the whole step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.methods_under_test import total
from stand_ins.packed_toy import ToyModel, make_group

from mmrlhf.errors import ConfigError
from mmrlhf.losses.prospect import KTO, KTOByReward, ResponseObjective
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.methods.single_responses import SingleResponseModule
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.packing import pack_groups

NAN = float("nan")


def build(objective: ResponseObjective) -> SingleResponseModule:
    return SingleResponseModule(ToyModel(), objective, PairScheme(), OptimSettings(), total_steps=1)


def moved(group: EncodedGroup) -> EncodedGroup:
    """The same with a reference that found the responses unlikelier than the policy does."""
    return replace(group, columns={**group.columns, "reference_logprob": group.columns["reference_logprob"] - 20})


def single(number: int, reward: float) -> EncodedGroup:
    """A query with one response, unranked, and its reward."""
    group = make_group(number, (NAN,))
    return replace(group, pairs=(), columns={**group.columns, "reward": torch.tensor([reward])})


def ratios(groups: list[EncodedGroup]) -> torch.Tensor:
    batch = pack_groups(groups)
    return (ToyModel()(batch).logprob - batch.columns["reference_logprob"]).detach()


def test_a_step_is_the_mean_over_responses_against_the_steps_kl() -> None:
    groups = [make_group(1, (1, 2)), make_group(2, (2, 1, 3)), make_group(3, (NAN,)), make_group(4, weight=0.0)]
    groups = [moved(group) for group in groups]
    ratio = ratios(groups[:2])
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    objective = KTO(beta=0.7, undesirable_weight=0.5)
    kl = ratio.mean().clamp(min=0)
    expected = objective.response_loss(ratio, labels, kl).mean().item()
    for micro_batches in (1, 4):
        assert total(build(objective), groups, micro_batches) == pytest.approx(expected, rel=1e-5)
    assert kl > 0, "these responses must have moved for the KL to be tested"


def test_queries_with_one_response_train_where_rewards_say_what_is_good() -> None:
    groups = [single(number, reward) for number, reward in enumerate((-1.0, 0.2, 3.0))]
    groups = [moved(group) for group in groups]
    ratio, objective = ratios(groups), KTOByReward(threshold=0.0)
    expected = objective.response_loss(ratio, torch.tensor([0.0, 1.0, 1.0]), ratio.mean().clamp(min=0)).mean().item()
    for micro_batches in (1, 3):
        assert total(build(objective), groups, micro_batches) == pytest.approx(expected, rel=1e-5)


def test_a_missing_table_of_rewards_is_named() -> None:
    group = make_group(1)
    bare = replace(group, columns={name: value for name, value in group.columns.items() if name != "reward"})
    with pytest.raises(ConfigError, match="KTOByReward needs rewards"):
        build(KTOByReward()).count(pack_groups([bare]))
