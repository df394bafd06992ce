"""Before the first update the policy is its reference, or the run stops; later, and elsewhere, nobody asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_ins.packed_toy import ToyModel, fit, make_group, make_step, quiet_trainer
from torch import nn

from mmrlhf.errors import DataError
from mmrlhf.losses.dpo import DPO
from mmrlhf.methods import preference
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.methods.preference import PreferenceModule
from mmrlhf.tensors import EncodedGroup, PackedBatch, ResponseOutputs, StepBatch
from mmrlhf.tokens.packing import pack_groups


def tabled(model: nn.Module, number: int) -> EncodedGroup:
    """A group whose table holds what a model says."""
    group = make_group(number)
    with torch.no_grad():
        said = model(pack_groups([group])).logprob
    return replace(group, columns={**group.columns, "reference_logprob": said})


def steps_of(model: nn.Module, count: int = 2) -> list[StepBatch]:
    return [make_step(step, [tabled(model, 10 * step + i) for i in range(4)], 2) for step in range(count)]


def build(model: nn.Module, **options: object) -> PreferenceModule:
    settings: dict = {"total_steps": 2, "starts_as_reference": True, **options}
    return PreferenceModule(model, DPO(), PairScheme(), OptimSettings(lr=1e-2), **settings)


def test_the_same_model_passes_and_its_loss_is_log_2() -> None:
    module = build(ToyModel())
    losses: list[float] = []
    step = module.training_step
    module.training_step = lambda *given: losses.append(step(*given)["loss"].item())  # type: ignore[method-assign, assignment]
    fit(quiet_trainer(), module, steps_of(ToyModel()))
    assert losses[0] == pytest.approx(0.693147, abs=1e-6) and losses[1] != pytest.approx(0.693147, abs=1e-5)


def test_a_table_of_another_model_stops_before_the_update() -> None:
    model = ToyModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = build(model)
    module.stage = "mmdpo"
    with pytest.raises(DataError, match="another checkpoint, other weights or another precision") as caught:
        fit(quiet_trainer(), module, steps_of(ToyModel(seed=1)))
    assert "stage mmdpo, before step 0; worst: key group" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_wrong_response_is_enough_and_named() -> None:
    steps = steps_of(ToyModel())
    first = steps[0].micro_batches[0]
    columns = {**first.columns, "reference_logprob": first.columns["reference_logprob"].clone()}
    columns["reference_logprob"][2] -= 1.0
    steps[0] = replace(steps[0], micro_batches=(replace(first, columns=columns), *steps[0].micro_batches[1:]))
    with pytest.raises(DataError, match="key group0, response hash 0-2"):
        fit(quiet_trainer(), build(ToyModel()), steps)


class Coarse(ToyModel):
    """Says what depends on the row: rounding of a size, the same for the same row."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, batch: PackedBatch) -> ResponseOutputs:
        outputs = super().forward(batch)
        noise = torch.randn(len(outputs.logprob), generator=torch.Generator().manual_seed(batch.num_tokens))
        return replace(outputs, logprob=outputs.logprob + self.size * noise * outputs.num_tokens.sqrt())


@pytest.mark.parametrize("size", [1e-5, 0.1, 1.0])
def test_noise_of_packing_is_measured_and_allowed(size: float) -> None:
    """A table that was packed otherwise differs by as much as the check itself sees; six times that is too much."""
    fit(quiet_trainer(), build(Coarse(size)), steps_of(Coarse(size)))
    with pytest.raises(DataError):
        fit(quiet_trainer(), build(Coarse(size)), steps_of(Coarse(size + 20 * max(size, 1e-3))))


def test_other_references_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(preference, "measure", never)
    wrong = steps_of(ToyModel(seed=1))
    fit(quiet_trainer(), build(ToyModel(), starts_as_reference=False), wrong)
    fit(quiet_trainer(), build(ToyModel(), reference="frozen_copy", reference_model=ToyModel(seed=1)), wrong)
    with pytest.raises(AssertionError, match="measured"):
        fit(quiet_trainer(), build(ToyModel()), wrong)


def test_only_the_first_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = preference.measure
    monkeypatch.setattr(preference, "measure", lambda *given: calls.append(1) or real(*given))
    fit(quiet_trainer(), build(ToyModel(), total_steps=3), steps_of(ToyModel(), count=3))
    assert calls == [1]


def test_a_resumed_run_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its policy has left the reference; the table need not be what it says now."""
    trainer = quiet_trainer(max_steps=1)
    fit(trainer, build(ToyModel()), steps_of(ToyModel()))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    calls: list[int] = []
    monkeypatch.setattr(preference, "measure", lambda *_: calls.append(1) or [])
    again = build(ToyModel(seed=2))
    fit(quiet_trainer(max_epochs=2), again, steps_of(ToyModel()), ckpt_path=tmp_path / "one.ckpt")
    assert again.trainer.global_step > 1 and calls == []


def test_modes_and_dropout_are_as_before() -> None:
    """The check runs without dropout; training goes on with it, on the same draws."""
    found = []
    for asked in (False, True):
        model = ToyModel(dropout=0.3)
        module = build(model, starts_as_reference=asked)
        fit(quiet_trainer(), module, steps_of(ToyModel()))
        found.append(dict(model.state_dict()))
        assert model.training
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
