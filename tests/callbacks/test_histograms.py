"""Histograms reach the loggers that can show them, at the steps asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mmrlhf.callbacks import histograms
from mmrlhf.callbacks.histograms import PairHistograms, log_histogram


class Record(dict):
    def values(self, name: str) -> torch.Tensor:  # type: ignore[override]
        return self[name]


def shown(monkeypatch: pytest.MonkeyPatch, record: Record | None, step: int, batch: int = 0) -> list[tuple]:
    calls: list[tuple] = []
    monkeypatch.setattr(histograms, "log_histogram", lambda *call: calls.append(call))
    trainer = SimpleNamespace(is_global_zero=True, global_step=step, loggers=["logger"], num_training_batches=9)
    callback = PairHistograms(every_steps=5)
    callback.on_train_batch_end(trainer, None, {"record": record}, None, batch)  # type: ignore[arg-type]
    return calls


def test_names_that_a_step_holds_are_shown_at_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(beta=torch.tensor([0.1, 0.2]), margin=torch.empty(0))
    calls = shown(monkeypatch, record, step=10)
    assert [call[1] for call in calls] == ["train/beta_histogram"]
    assert shown(monkeypatch, record, step=11) == []
    assert shown(monkeypatch, None, step=10) == []
    assert len(shown(monkeypatch, record, step=11, batch=8)) == 1, "the last step of a run"


def test_margins_of_held_out_pairs_are_shown_after_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(histograms, "log_histogram", lambda *call: calls.append(call))
    trainer = SimpleNamespace(is_global_zero=True, global_step=4, loggers=["logger"])
    scores = SimpleNamespace(chosen=(1.0, 2.0), rejected=(0.5, 4.0))
    PairHistograms().on_validation_end(trainer, SimpleNamespace(heldout_scores=scores))  # type: ignore[arg-type]
    PairHistograms().on_validation_end(trainer, SimpleNamespace(heldout_scores=None))  # type: ignore[arg-type]
    ((_, name, values, step),) = calls
    assert (name, step) == ("val/margin_histogram", 4) and values.tolist() == [0.5, -2.0]


def test_tensorboard_gets_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    logger = TensorBoardLogger.__new__(TensorBoardLogger)
    experiment = SimpleNamespace(add_histogram=lambda name, values, global_step: calls.append((name, global_step)))
    monkeypatch.setattr(TensorBoardLogger, "experiment", experiment)
    log_histogram(logger, "train/beta_histogram", torch.ones(3), 7)
    assert calls == [("train/beta_histogram", 7)]
