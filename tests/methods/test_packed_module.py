"""Laws of the step: micro-batching, filler groups and interruptions change nothing; rank count: test_two_ranks.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from stand_ins.methods_under_test import METHODS, build_method
from stand_ins.packed_toy import ToyModel, fit, make_group, make_step, make_steps, quiet_trainer

from mmrlhf.methods import packed_module as base
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.packed_module import PackedModule
from mmrlhf.methods.sft import SFTModule
from mmrlhf.tensors import StepBatch


def train(method: str, steps: list[StepBatch], **options: object) -> tuple[dict, dict]:
    """Train a fresh toy; its parameters and the last step's metrics."""
    model = ToyModel()
    trainer = quiet_trainer(**options)
    fit(trainer, build_method(method, model, total_steps=len(steps)), steps)
    return model.state_dict(), {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("method", METHODS)
def test_micro_batching_changes_nothing(method: str) -> None:
    whole, whole_metrics = train(method, make_steps(3, num_micro=1))
    cut, cut_metrics = train(method, make_steps(3, num_micro=4))
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)
    # AdamW hides a wrong scale of the gradient; its norm does not.
    assert cut_metrics == pytest.approx(whole_metrics, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_filler_groups_change_nothing(method: str) -> None:
    groups = [make_group(1), make_group(2, image=True)]
    fillers = [make_group(3, weight=0.0), make_group(4, weight=0.0)]
    state, metrics = train(method, [make_step(0, groups, 2)])
    padded_state, padded_metrics = train(method, [make_step(0, groups + fillers, 2)])
    torch.testing.assert_close(padded_state, state, rtol=1e-4, atol=1e-6)
    assert padded_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_filling_up_to_another_rank_s_micro_batches_changes_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sharded model's ranks meet in every forward; another rank has two micro-batches more than this one."""
    groups = [make_group(1), make_group(2, image=True), make_group(3)]
    state, metrics = train(method, [make_step(0, groups, 2)])
    forwards: list[int] = []
    monkeypatch.setattr(base, "is_sharded", lambda model: True)
    monkeypatch.setattr(
        PackedModule, "_all_reduce", lambda self, value, how: value + 2 if is_count(value, how) else value
    )
    whole = ToyModel.forward
    monkeypatch.setattr(
        ToyModel, "forward", lambda self, batch: (forwards.append(len(batch.keys)), whole(self, batch))[1]
    )
    filled_state, filled_metrics = train(method, [make_step(0, groups, 2)])
    torch.testing.assert_close(filled_state, state, rtol=1e-4, atol=1e-6)
    assert filled_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    assert len(forwards) % 4 == 0 and len(forwards) >= 4


def is_count(value: torch.Tensor, how: str) -> bool:
    return how == "max" and value.ndim == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_fillers_alone_is_no_nan(method: str) -> None:
    state, metrics = train(method, [make_step(0, [make_group(1, weight=0.0)], 1)])
    assert all(torch.isfinite(value).all() for value in state.values())
    assert metrics["train/gradient_norm"] == 0 and metrics["train/loss"] == 0


def test_a_step_counts_once_in_global_step() -> None:
    trainer = quiet_trainer()
    fit(trainer, build_method("sft", ToyModel(), 3), make_steps(3, num_micro=4))
    assert trainer.global_step == 3


class StopAfter(L.Callback):
    """Saves and stops after a number of steps, as a crash would."""

    def __init__(self, steps: int, path: Path) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("method", METHODS)
def test_resume_is_exact_to_the_bit(method: str, tmp_path: Path) -> None:
    def run(model: ToyModel, steps: list[StepBatch], ckpt: Path | None = None, callbacks: tuple = ()) -> dict:
        trainer = quiet_trainer(callbacks=list(callbacks))
        fit(trainer, build_method(method, model, total_steps=4), steps, ckpt_path=ckpt)
        return model.state_dict()

    steps = make_steps(4, num_micro=2)
    expected = run(ToyModel(dropout=0.5), steps)
    path = tmp_path / "half.ckpt"
    run(ToyModel(dropout=0.5), steps, callbacks=(StopAfter(2, path),))
    # The loader's cursor belongs to the data module; here the second half is handed over instead.
    resumed = run(ToyModel(seed=1, dropout=0.5), [*steps[2:]], ckpt=_without_loop_position(path))
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def _without_loop_position(path: Path) -> Path:
    checkpoint = torch.load(path)
    progress = checkpoint["loops"]["fit_loop"]
    progress["epoch_loop.batch_progress"] = {
        **progress["epoch_loop.batch_progress"],
        "total": dict.fromkeys(("ready", "completed", "started", "processed"), 0),
        "current": dict.fromkeys(("ready", "completed", "started", "processed"), 0),
    }
    torch.save(checkpoint, path)
    return path


def test_nothing_trainable_is_named() -> None:
    model = ToyModel().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        SFTModule(model, OptimSettings(), total_steps=1).configure_optimizers()


def test_truncated_tokens_are_counted() -> None:
    steps = [
        replace(step, micro_batches=tuple(replace(micro, truncated_tokens=3) for micro in step.micro_batches))
        for step in make_steps(2, num_micro=1)
    ]
    module = build_method("sft", ToyModel(), 2)
    fit(quiet_trainer(), module, steps)
    assert module.cuts() == {"truncated_tokens": 6, "equal_pairs": 0}
