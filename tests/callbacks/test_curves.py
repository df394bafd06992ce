"""Curves: what is logged is read back; a resumed run leaves no doubles."""

from __future__ import annotations

import math
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.toy_training import Numbers, Toy, build_trainer

from mmrlhf.callbacks.checkpoints import StepCheckpoint, latest_checkpoint
from mmrlhf.callbacks.curves import CurveLogger
from mmrlhf.callbacks.preemption import Preemption
from mmrlhf.errors import DataError
from mmrlhf.summaries.curve_file import read_curves

NAMES = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(NAMES, st.lists(st.floats(allow_nan=False), min_size=1, max_size=5), max_size=4))
def test_what_is_logged_is_read_back(series):
    """Any name (commas, quotes) and any float survives, to the bit."""
    series.pop("epoch", None)
    with tempfile.TemporaryDirectory() as folder:
        logger = CurveLogger(folder)
        for step in range(5):
            logger.log_metrics({name: values[step] for name, values in series.items() if step < len(values)}, step)
        logger.finalize("success")
        back = read_curves(folder)
    assert {name: values.tolist() for name, (_, values) in back.items()} == series
    assert all(steps.tolist() == list(range(len(series[name]))) for name, (steps, _) in back.items())


def test_not_a_number_stays_not_a_number(tmp_path):
    logger = CurveLogger(tmp_path)
    logger.log_metrics({"loss": math.nan, "epoch": 0}, 3)
    logger.save()
    steps, values = read_curves(tmp_path)["loss"]
    assert steps.tolist() == [3] and np.isnan(values).all() and "epoch" not in read_curves(tmp_path)


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    first = CurveLogger(tmp_path)
    for step in range(8):
        first.log_metrics({"loss": float(step)}, step)
    first.save()
    second = CurveLogger(tmp_path)
    second.log_metrics({"loss": 50.0}, 5)
    second.finalize("success")
    steps, values = read_curves(tmp_path)["loss"]
    assert steps.tolist() == [0, 1, 2, 3, 4, 5] and values.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 50.0]


def test_a_line_cut_by_a_crash_is_dropped(tmp_path):
    (tmp_path / "curves.csv").write_text("step,name,value\n0,loss,1.0\n1,loss,0.")
    assert read_curves(tmp_path)["loss"][0].tolist() == [0]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "curves.csv").write_text("step,name,value\n0,loss,1.0\n1,loss\n")
    with pytest.raises(DataError, match=r"curves.csv:3"):
        read_curves(tmp_path)


def test_a_resumed_training_has_the_curve_of_a_whole_one(tmp_path):
    def fit(folder, stop_after):
        class Stop(Toy):
            def training_step(self, batch, batch_idx):
                if self.global_step == stop_after:
                    raise RuntimeError("cut")
                super().training_step(batch, batch_idx)

        callback, module = StepCheckpoint(folder / "checkpoints", Preemption(), every_steps=3), Stop()
        resume = latest_checkpoint(folder / "checkpoints")
        build_trainer([callback], CurveLogger(folder)).fit(module, datamodule=Numbers(10), ckpt_path=resume)

    fit(tmp_path / "whole", None)
    with pytest.raises(RuntimeError, match="cut"):
        fit(tmp_path / "cut", 5)
    assert read_curves(tmp_path / "cut")["train/loss"][0].tolist() == [0, 1, 2, 3, 4]
    fit(tmp_path / "cut", None)
    for name, (steps, values) in read_curves(tmp_path / "whole").items():
        resumed = read_curves(tmp_path / "cut")[name]
        assert steps.tolist() == list(range(10)) == resumed[0].tolist()
        assert values.tolist() == resumed[1].tolist()
