"""Loggers of a stage that was stopped go on: one W&B run, one table of all rows, one curve in TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import Logger

from mmrlhf.callbacks.curves import CurveLogger
from mmrlhf.callbacks.loggers import Loggers, wandb_folders


def _log(loggers: Sequence[Logger], steps: range, *, offset: float = 0.0, ends: bool = True) -> None:
    for step in steps:
        for logger in loggers:
            logger.log_metrics({"loss": step + offset, **({"val": 1.0} if step == 7 else {})}, step=step)
    for logger in loggers if ends else ():
        logger.finalize("success")


def _checkpoint(folder: Path, step: int) -> None:
    (folder / "checkpoints").mkdir()
    torch.save({}, folder / "checkpoints" / f"step-{step:08d}.ckpt")


def _csv_loggers(folder: Path) -> list[Logger]:
    return [CurveLogger(folder), *Loggers(csv=True)(folder, "sft")]


def test_the_table_keeps_the_rows_from_before_a_kill(tmp_path: Path) -> None:
    """Steps 0 to 5 are saved with a checkpoint at 5, 6 is lost with the kill or logged again; then 5 to 9 follow."""
    first = _csv_loggers(tmp_path)
    _log(first, range(6), ends=False)
    for logger in first:
        logger.save()
    _log(first, range(6, 7), offset=0.5, ends=False)
    _log(_csv_loggers(tmp_path), range(5, 10))
    rows = list(csv.DictReader((tmp_path / "logs" / "csv" / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(10))
    assert [float(row["loss"]) for row in rows] == [float(step) for step in range(10)]
    assert [row["val"] for row in rows] == ["1.0" if step == 7 else "" for step in range(10)]


def test_a_resumed_stage_is_one_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ids = []
    for stage in ("stage", "stage", "other"):
        loggers = Loggers(wandb="offline", run_name="test")
        with wandb_folders(tmp_path / "run"):
            [logger] = loggers(tmp_path / stage, "sft")
            logger.log_metrics({"loss": 1.0}, step=0)
            ids.append(logger.experiment.id)
            loggers.finish()
    assert ids[0] == ids[1] != ids[2]
    # two runs of one second get a number behind the id
    assert all(ids[0] in path.name for path in (tmp_path / "stage/logs/wandb").glob("offline-run-*"))


def test_tensorboard_drops_what_is_logged_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _log(Loggers(tensorboard=True)(tmp_path, "sft"), range(8), offset=0.5)
    _checkpoint(tmp_path, 5)
    _log(Loggers(tensorboard=True)(tmp_path, "sft"), range(5, 10))
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(step, step + 0.5 * (step < 5)) for step in range(10)]


def test_an_empty_file_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill between making and filling it left it: W&B would then begin a run at every restart."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "wandb_run_id").touch()
    ids = [Loggers(wandb="offline")(tmp_path, "sft")[0].version for _ in range(2)]
    assert ids[0] == ids[1] and ids[0]
