"""Histograms: counted once, kept in a file that a resumed run continues, and sent to loggers that can show them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger

from mmrlhf.callbacks import histograms
from mmrlhf.callbacks.histograms import NUM_BINS, PairHistograms, count, log_histograms
from mmrlhf.errors import DataError
from mmrlhf.summaries.histogram_file import FILE_NAME, Histogram, read_histograms


class Record(dict):
    def values(self, name: str) -> torch.Tensor:  # type: ignore[override]
        return self[name]


BETAS = Record(beta=torch.tensor([0.1, 0.2, float("nan")]), margin=torch.empty(0))


def step(folder: Path, number: int, record: Record | None = BETAS, *, batch: int = 0, every: int = 1) -> PairHistograms:
    """Let a callback see one training step."""
    trainer = SimpleNamespace(is_global_zero=True, global_step=number, loggers=[], num_training_batches=9)
    callback = PairHistograms(folder, every_steps=every)
    callback.on_train_batch_end(trainer, None, {"record": record}, None, batch)  # type: ignore[arg-type]
    return callback


def written(folder: Path) -> dict[str, list[int]]:
    return {name: [row.step for row in rows] for name, rows in read_histograms(folder).items()}


def test_names_that_a_step_holds_are_kept_at_their_steps(tmp_path: Path) -> None:
    step(tmp_path, 10, every=5)
    step(tmp_path, 11, every=5)
    step(tmp_path, 15, None, every=5)
    step(tmp_path, 17, every=5, batch=8)
    assert written(tmp_path) == {"train/beta_histogram": [10, 17]}, "17 is the last step of a run"
    (first, _) = read_histograms(tmp_path)["train/beta_histogram"]
    assert sum(first.counts) == 2 and (first.low, first.high) == pytest.approx((0.1, 0.2))


def test_margins_of_held_out_pairs_are_kept_after_a_validation(tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=True, global_step=4, loggers=[])
    for scores in (SimpleNamespace(chosen=(1.0, 2.0), rejected=(0.5, 4.0)), None):
        PairHistograms(tmp_path).on_validation_end(trainer, SimpleNamespace(heldout_scores=scores))  # type: ignore[arg-type]
    ((row,),) = read_histograms(tmp_path).values()
    assert (row.name, row.step, row.low, row.high) == ("val/margin_histogram", 4, -2.0, 0.5)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=False, global_step=1, loggers=[], num_training_batches=9)
    PairHistograms(tmp_path).on_train_batch_end(trainer, None, {"record": BETAS}, None, 0)  # type: ignore[arg-type]
    assert not (tmp_path / FILE_NAME).exists()


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        step(tmp_path, number)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text() + '{"step": 4, "na')
    PairHistograms(tmp_path).on_train_start(SimpleNamespace(is_global_zero=True, global_step=2), None)  # type: ignore[arg-type]
    step(tmp_path, 3)
    assert written(tmp_path) == {"train/beta_histogram": [1, 2, 3]}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    step(tmp_path, 1)
    path = tmp_path / FILE_NAME
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(DataError, match="histograms.jsonl:1"):
        read_histograms(tmp_path)
    assert read_histograms(tmp_path / "nowhere") == {}


@given(st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=50))
def test_every_value_is_counted_once_between_the_ends(values: list[float]) -> None:
    found = count("any", torch.tensor(values), 7)
    assert sum(found.counts) == len(values) and len(found.counts) == NUM_BINS
    assert found.low <= min(values) and max(values) <= found.high and found.low < found.high
    if min(values) < max(values):
        counts, _ = np.histogram(np.array(values, dtype=np.float32).astype(float), NUM_BINS)
        assert found == Histogram(7, "any", min(values), max(values), tuple(counts.tolist()))


def test_tensorboard_gets_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple] = []
    board = TensorBoardLogger.__new__(TensorBoardLogger)
    writer = SimpleNamespace(add_histogram=lambda name, values, global_step: written.append((name, global_step)))
    monkeypatch.setattr(TensorBoardLogger, "experiment", property(lambda self: writer))
    log_histograms(board, {"train/beta_histogram": torch.ones(3)}, 7)
    assert written == [("train/beta_histogram", 7)]
    assert histograms.NAMES[:2] == ("beta", "margin")
