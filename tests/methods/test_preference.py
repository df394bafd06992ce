"""Preference laws: what it needs is named, references agree, call statistics are statistics of the step."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from stand_ins.methods_under_test import total
from stand_ins.packed_toy import ToyData, ToyModel, make_group, quiet_trainer

from mmrlhf.errors import ConfigError
from mmrlhf.losses.call_beta import BetaDPO
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.margin_controls import HardFilter, MeanBetaDPO, ShuffledMargin
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.losses.objective import Objective
from mmrlhf.losses.optimal_transport import AOT
from mmrlhf.methods import pairing
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import _join, pair_names, scale_over_step
from mmrlhf.methods.preference import PairScheme, PreferenceModule
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tensors import StepBatch
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


class Rounding(ToyModel):
    """Says a little else at every call, as another packing would."""

    def forward(self, batch):  # type: ignore[no-untyped-def]
        outputs = super().forward(batch)
        return replace(outputs, logprob=outputs.logprob + 1e-5 * torch.randn(len(outputs.logprob)))


def tabled_groups(model: ToyModel, count: int) -> list:
    """Groups whose table holds what a model says."""
    groups = [make_group(number) for number in range(count)]
    return [
        replace(group, columns={**group.columns, "reference_logprob": model(pack_groups([group])).logprob.detach()})
        for group in groups
    ]


@pytest.mark.parametrize("num_micro", [1, 2, 3, 6])
def test_which_pairs_beta_dpo_filters_at_step_0_depends_on_names_alone(num_micro: int) -> None:
    groups = tabled_groups(ToyModel(), 6)
    batches = [pack_groups(groups[start::num_micro]) for start in range(num_micro)]
    counts = build(BetaDPO(), Rounding()).prepare(batches)
    kept = {
        name: float(weight)
        for batch, own in zip(batches, counts, strict=True)
        for name, weight in zip(pair_names(batch, own.pairs), own.scale.a, strict=True)  # type: ignore[union-attr]
    }
    names = sorted(kept)
    assert [name for name in names if kept[name] == 0] == names[int(0.8 * len(names)) :]


@pytest.mark.parametrize("num_micro", [1, 2, 5])
@pytest.mark.parametrize("objective", [AOT(), ShuffledMargin(seed=3)], ids=repr)
def test_a_query_that_is_in_a_step_twice_has_pairs_of_its_own_each_time(objective: Objective, num_micro: int) -> None:
    """Balanced categories see a query of a rare one more than once in an epoch: copies share their names."""
    groups = [make_group(number, (1, 2)) for number in (0, 1, 1, 2, 1)]
    batches = [pack_groups([group]) for group in groups]
    module = build(objective)
    inputs = [module._forward(batch, module.count(batch))[1] for batch in batches]
    with torch.no_grad():
        whole = _join([inputs[place] for place in (0, 1, 2, 4, 3)])  # in the order of names
        expected = objective(whole).loss.mean()
    assert total(module, groups, num_micro) == pytest.approx(float(expected), rel=1e-5)


def test_every_rank_finds_its_own_pairs_among_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks have copies of one query: together they have what one rank has that holds both."""
    groups = [make_group(number, (1, 2)) for number in (1, 0, 2, 1)]
    batches = [pack_groups([group]) for group in groups]
    module = build(AOT())
    counts = [module.count(batch) for batch in batches]
    inputs = [module._forward(batch, own)[1] for batch, own in zip(batches, counts, strict=True)]
    names = [pair_names(batch, own.pairs) for batch, own in zip(batches, counts, strict=True)]
    alone = [scale.m for scale in scale_over_step(AOT(), inputs, names)]
    shares = [(sum(names[part], []), _join(inputs[part])) for part in (slice(0, 2), slice(2, 4))]
    monkeypatch.setattr(pairing, "gather_ranks", lambda own: shares)
    both = [scale.m for rank, part in enumerate((slice(0, 2), slice(2, 4)))
            for scale in scale_over_step(AOT(), inputs[part], names[part], rank=rank)]  # fmt: skip
    torch.testing.assert_close(torch.stack(both), torch.stack(alone))


def test_dropped_pairs_stay_in_the_divisor_and_margin_filtered_ones_leave_it() -> None:
    """Per pair by hand: preference 0 where dropped, the supervised term everywhere, all over the number of pairs."""
    group = make_group(1, (1, 2, 3))
    reward = torch.tensor([1.0, 0.0, 2.0])  # margins of (0, 1), (0, 2), (1, 2): 1, -1, -2
    group = replace(group, columns={**group.columns, "reward": reward})
    with torch.no_grad():
        outputs = ToyModel()(pack_groups([group]))
    ratio = outputs.logprob - group.columns["reference_logprob"]
    loss = torch.nn.functional.softplus(-0.1 * (ratio[0] - ratio[1]))
    nll = -outputs.logprob / outputs.num_tokens
    for objective in (HardFilter(sft_weight=0.5), MMDPO(w=0.0, negative_margin="drop", sft_weight=0.5)):
        expected = (loss + 0.5 * (2 * nll[0] + nll[1])) / 3
        assert total(build(objective), [group], 1) == pytest.approx(float(expected), rel=1e-5)
        record, module = StepRecord(), build(objective)
        batch = pack_groups([group])
        module.loss_sums(batch, module.count(batch), record)
        assert record.reduce(lambda tensor, _: tensor)["kept_pairs"] == pytest.approx(1 / 3)
    module = PreferenceModule(
        ToyModel(), DPO(sft_weight=0.5), PairScheme(min_margin=0.0), OptimSettings(), total_steps=1
    )
    assert total(module, [group], 1) == pytest.approx(float(loss + 0.5 * nll[0]), rel=1e-5)


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


def test_a_table_of_other_tokens_names_key_and_both_counts() -> None:
    groups = [make_group(1), make_group(2)]
    counts = [torch.tensor([float(branch.labels.sum()) for branch in group.branches]) for group in groups]
    tabled = [
        replace(group, columns={**group.columns, "reference_tokens": count})
        for group, count in zip(groups, counts, strict=True)
    ]
    assert build(DPO()).complaint(pack_groups(tabled)) is None
    true = int(counts[1][2])
    counts[1][2] += 3
    found = build(DPO()).complaint(pack_groups(tabled))
    assert "key group2, response hash 2-2" in str(found)
    assert f"{true + 3} tokens in the table, {true} in training" in str(found)
    assert build(DPO(), reference="adapter").complaint(pack_groups(tabled)) is None


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


@pytest.mark.parametrize("scheme", [PairScheme(), PairScheme("hardest"), PairScheme(ties="even")], ids=repr)
@pytest.mark.parametrize("ranks", [(1, 2, 2, 3), (1, 1)])
def test_the_curve_of_held_out_accuracy_is_of_the_annotators_pairs(scheme: PairScheme, ranks: tuple[int, ...]) -> None:
    """`val/accuracy` is the share of right pairs among the held-out scores; without any such pair there is no curve."""
    batch = pack_groups([make_group(number, ranks) for number in range(4)])
    step = StepBatch(epoch=0, step=0, micro_batches=(batch,), num_groups=4)
    module = PreferenceModule(ToyModel(), DPO(), scheme, OptimSettings(), total_steps=1)
    trainer = quiet_trainer()
    trainer.validate(module, datamodule=ToyData([step], [step]), verbose=False)
    scores = module.heldout_scores
    if ranks == (1, 1):
        assert scores is None and "val/accuracy" not in trainer.callback_metrics
        return
    assert scores is not None and len(scores.keys) == 4 * 5
    right = [chosen > rejected for chosen, rejected in zip(scores.chosen, scores.rejected, strict=True)]
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(sum(right) / len(right))


def test_swapping_ranks_turns_accuracy_round() -> None:
    def accuracy(ranks: tuple[int, int]) -> float:
        record = StepRecord()
        module = build(DPO())
        batch = pack_groups([make_group(number, ranks) for number in range(8)])
        module.loss_sums(batch, module.count(batch), record)
        return record.reduce(lambda tensor, _: tensor)["accuracy"]

    assert accuracy((1, 2)) == pytest.approx(1 - accuracy((2, 1)))
