"""LD-DPO as a method: sums of first tokens in packed rows, table and forward alike, DPO as its limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.methods_under_test import total
from stand_ins.packed_toy import ToyModel, make_group
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.length_desensitised import LDDPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.methods.preference import PreferenceModule
from mmrlhf.methods.shared_lengths import LengthDesensitisedModule, first_tokens
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.packing import pack_groups


def build(objective: LDDPO, **options: object) -> LengthDesensitisedModule:
    return LengthDesensitisedModule(ToyModel(), objective, PairScheme(), OptimSettings(), total_steps=1, **options)


def tokens_of(model: ToyModel, group: EncodedGroup) -> list[Tensor]:
    """Log-probabilities of each response's tokens, from a row of that response alone."""
    alone = [
        replace(group, branches=(branch,), pairs=(), columns={name: value[:1] for name, value in group.columns.items()})
        for branch in group.branches
    ]
    return [model(pack_groups([each])).token_logprob.detach() for each in alone]


def tabled(group: EncodedGroup, model: ToyModel, columns: int) -> EncodedGroup:
    """The group with what a reference says in its table."""
    said = tokens_of(model, group)
    shared = {
        f"reference_shared_{k}": torch.stack([own[: len(said[k]) if k < len(said) else None].sum() for own in said])
        for k in range(columns)
    }
    whole = torch.stack([own.sum() for own in said])
    return replace(group, columns={**group.columns, "reference_logprob": whole, **shared})


GROUPS = [make_group(1), make_group(2, (1, 2), image=True), make_group(3, (1, 2, 3))]


def test_first_tokens_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    lengths, response = torch.tensor([2, 0, 4]), torch.tensor([2, 0, 1, 2, 2])
    found = first_tokens(values, lengths, response, torch.tensor([3, 2, 0, 0, 4]))
    assert found.tolist() == [28, 3, 0, 0, 60]


def test_a_step_is_the_formula_on_each_pair() -> None:
    """From every response read alone: log-ratio of the first n tokens, and alpha times that of the others."""
    policy, other = ToyModel(), ToyModel(seed=5)
    groups = [tabled(group, other, 4) for group in GROUPS]
    losses = []
    for group in groups:
        ratios = [a - b for a, b in zip(tokens_of(policy, group), tokens_of(other, group), strict=True)]
        for chosen, rejected in group.pairs:
            shared = min(len(ratios[chosen]), len(ratios[rejected]))
            score = [ratios[k][:shared].sum() + 0.3 * ratios[k][shared:].sum() for k in (chosen, rejected)]
            losses.append(torch.nn.functional.softplus(-0.7 * (score[0] - score[1])))
    assert len({len(branch.ids) for group in groups for branch in group.branches}) > 2, "lengths differ"
    expected = float(torch.stack(losses).mean())
    for num_micro in (1, 3):
        assert total(build(LDDPO(beta=0.7, alpha=0.3)), groups, num_micro) == pytest.approx(expected, rel=1e-5)
    plain = PreferenceModule(ToyModel(), DPO(beta=0.7), PairScheme(), OptimSettings(), total_steps=1)
    assert abs(total(plain, groups, 1) - expected) > 1e-3


def test_a_table_and_a_copy_agree() -> None:
    other = ToyModel(seed=5)
    groups = [tabled(group, other, 4) for group in GROUPS]
    copy = build(LDDPO(), reference="frozen_copy", reference_model=other)
    assert total(copy, GROUPS, 2) == pytest.approx(total(build(LDDPO()), groups, 1), rel=1e-5)


def test_alpha_1_is_dpo() -> None:
    groups = [tabled(group, ToyModel(seed=5), 4) for group in GROUPS]
    plain = PreferenceModule(ToyModel(), DPO(), PairScheme(), OptimSettings(), total_steps=1)
    assert total(build(LDDPO(alpha=1.0)), groups, 1) == pytest.approx(total(plain, groups, 1), rel=1e-6)


@pytest.mark.parametrize("columns", [0, 3])
def test_a_table_that_lacks_shared_lengths_is_named(columns: int) -> None:
    group = tabled(make_group(1), ToyModel(), columns)
    with pytest.raises(ConfigError, match="shared_lengths=true"):
        build(LDDPO()).count(pack_groups([group]))
