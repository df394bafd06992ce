"""Preference laws: what it needs is named, references agree, call statistics are statistics of the step."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from stand_ins.methods_under_test import total
from stand_ins.packed_toy import ToyModel, make_group

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.margin_controls import MeanBetaDPO, ShuffledMargin
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.preference import PairScheme, PreferenceModule
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tokens.packing import pack_groups


def build(objective: object, model: ToyModel | None = None, **options: object) -> PreferenceModule:
    settings: dict = {"total_steps": 1, **options}
    return PreferenceModule(model or ToyModel(), objective, PairScheme(), OptimSettings(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "objective",
    [MMDPO(sft_weight=0.5), MMDPO(margin_scale="standardise"), ShuffledMargin(seed=3), MeanBetaDPO(w=1.0)],
    ids=repr,
)
def test_micro_batches_do_not_change_the_loss(objective: object) -> None:
    groups = [make_group(number, image=number % 2 == 0) for number in range(6)]
    whole = total(build(objective), groups, 1)
    assert total(build(objective), groups, 3) == pytest.approx(whole, rel=1e-5)
    assert total(build(objective), groups[::-1], 6) == pytest.approx(whole, rel=1e-5)


def test_a_step_of_one_group_is_the_objective_itself() -> None:
    groups = [make_group(1, (1, 2, 2))]
    batch = pack_groups(groups)
    outputs = ToyModel()(batch)
    ratio = outputs.logprob - batch.columns["reference_logprob"]
    expected = [torch.nn.functional.softplus(-0.1 * (ratio[0] - ratio[k])) for k in (1, 2)]
    assert total(build(DPO(beta=0.1)), groups, 1) == pytest.approx(float(sum(expected).detach()) / 2, rel=1e-5)


class WithAdapter(ToyModel):
    """Adds a change that can be switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = 0.3

    def forward(self, batch):  # type: ignore[no-untyped-def]
        outputs = super().forward(batch)
        return replace(outputs, logprob=outputs.logprob * (1 + self.shift))

    @contextmanager
    def adapters_off(self):  # type: ignore[no-untyped-def]
        before, self.shift = self.shift, 0.0
        yield
        self.shift = before


def test_references_agree() -> None:
    """Adapters switched off, a frozen copy, and a table of the same model's values give the same loss."""
    groups = [make_group(1), make_group(2)]
    values = ToyModel()(pack_groups(groups)).logprob.detach().split([len(group.branches) for group in groups])
    tabled = [
        replace(group, columns={**group.columns, "reference_logprob": value})
        for group, value in zip(groups, values, strict=True)
    ]
    losses = {
        "table": total(build(DPO(), WithAdapter()), tabled, 1),
        "adapter": total(build(DPO(), WithAdapter(), reference="adapter"), groups, 1),
        "copy": total(build(DPO(), WithAdapter(), reference="frozen_copy", reference_model=ToyModel()), groups, 1),
    }
    assert losses == pytest.approx(dict.fromkeys(losses, losses["table"]), rel=1e-5)
    assert losses["table"] != pytest.approx(0.6931, abs=1e-3)


def test_a_frozen_copy_is_no_part_of_the_module() -> None:
    module = build(DPO(), reference="frozen_copy", reference_model=ToyModel(seed=5))
    assert module.state_dict().keys() == build(DPO()).state_dict().keys()


@pytest.mark.parametrize(("column", "stage"), [("reward", "score"), ("reference_logprob", "reference")])
def test_a_missing_column_names_the_stage_that_makes_it(column: str, stage: str) -> None:
    group = make_group(1)
    group = replace(group, columns={name: value for name, value in group.columns.items() if name != column})
    with pytest.raises(ConfigError, match=f"folder that the stage `{stage}` writes"):
        build(MMDPO()).count(pack_groups([group]))


def test_a_reference_cannot_be_left_out_where_it_is_needed() -> None:
    with pytest.raises(ConfigError, match="compares the policy with a reference"):
        build(DPO(), reference="none")


def test_heldout_pairs_are_all_pairs_whatever_is_trained_on() -> None:
    """So that arms with other pair schemes are measured on the same pairs."""
    batch = pack_groups([make_group(1, (1, 2, 3))])
    scores = []
    for scheme in ("all", "hardest"):
        module = PreferenceModule(ToyModel(), DPO(), PairScheme(scheme), OptimSettings(), total_steps=1)
        scores.append(module.score_pairs(batch, module.count(batch), StepRecord()))
    assert scores[0] == scores[1] and len(scores[0].keys) == 3


def test_swapping_ranks_turns_accuracy_round() -> None:
    def accuracy(ranks: tuple[int, int]) -> float:
        record = StepRecord()
        module = build(DPO())
        batch = pack_groups([make_group(number, ranks) for number in range(8)])
        module.loss_sums(batch, module.count(batch), record)
        return record.reduce(lambda tensor, _: tensor)["accuracy"]

    assert accuracy((1, 2)) == pytest.approx(1 - accuracy((2, 1)))
