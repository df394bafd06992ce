"""Progress: items pass through untouched, log lines off a terminal, one shared display on one."""

from __future__ import annotations

import io
import logging

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mmrlhf.callbacks import training_progress as progress
from mmrlhf.callbacks.training_progress import TrainingProgress
from mmrlhf.terminal import lines
from mmrlhf.terminal.lines import LogLine, format_rate, format_seconds
from mmrlhf.terminal.progress import progress_switch, track


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("MMRLHF_PROGRESS", raising=False)


@pytest.fixture
def terminal(monkeypatch):
    """A console that claims to be a terminal and writes to memory."""
    console = Console(file=io.StringIO(), force_terminal=True, width=140, _environ={"TERM": "xterm"})
    monkeypatch.setattr(lines, "get_console", lambda: console)
    return console


@given(st.lists(st.integers()))
def test_items_pass_through(items):
    assert list(track(iter(items), "passing", len(items))) == items


def test_log_lines_at_start_and_end(caplog):
    with caplog.at_level(logging.INFO, logger="mmrlhf.progress"):
        assert sum(track(range(50), "adding")) == 1225
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["adding", "adding"]
    assert "started, 50 items" in caplog.text and "50/50 items, finished in" in caplog.text


def test_a_loop_that_is_left_says_stopped(caplog):
    with caplog.at_level(logging.INFO, logger="mmrlhf.progress"), pytest.raises(KeyError):
        for item in track(range(5), "failing"):
            if item == 3:
                raise KeyError(item)
    assert "3/5 items, stopped after" in caplog.text


@pytest.mark.parametrize("how", ["argument", "block", "environment", "rank"])
def test_switches(how, caplog, monkeypatch):
    monkeypatch.setenv("MMRLHF_PROGRESS", "0" if how == "environment" else "1")
    if how == "rank":
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
    with caplog.at_level(logging.INFO, logger="mmrlhf.progress"), progress_switch(how != "block"):
        assert list(track(range(3), "silent", enabled=how != "argument")) == [0, 1, 2]
    assert not caplog.records


def test_a_line_every_thirty_seconds_with_the_time_left(caplog, monkeypatch):
    """40 items at 2 s each: lines after 30 and 60 s; after 15 items (30 s), 25 items x 2 s = 50 s are left."""
    clock = [0.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, logger="mmrlhf.progress"):
        line = LogLine("scoring", 40, unit="groups")
        for done in range(1, 41):
            clock[0] += 2.0
            line.update(done)
        line.close()
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 4
    assert texts[1] == "scoring: 15/40 groups, 50 s left, 2.0 s each"
    assert texts[-1] == "scoring: 40/40 groups, finished in 1:20, 2.0 s each"


def test_resumed_items_do_not_count_for_the_rate(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, logger="mmrlhf.progress"):
        line = LogLine("train", 100, done=90, share=0.05)
        clock[0] = 10.0
        line.update(95)
    assert "95/100 steps, 10 s left, 2.0 s each" in caplog.text


def test_terminal_shares_one_display(terminal):
    for _ in track(range(2), "outer"):
        assert list(track(range(3), "inner")) == [0, 1, 2]
    assert lines._display._progress is None, "the display stops with its last line"
    shown = terminal.file.getvalue()
    assert "outer" in shown and "2/2" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.23, "4.2 s"), (59.4, "59 s"), (187, "3:07"), (7387, "2:03:07"), (0, "0.0 s")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_rates():
    assert (format_rate(12.34), format_rate(0.5), format_rate(0)) == ("12.3/s", "2.0 s each", "")


class Toy(L.LightningModule):
    """One batch is one optimizer step, by hand."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = (self.weight - 1.0) ** 2
        self.manual_backward(loss)
        optimizer.step()
        self.log_dict({"train/loss": loss.detach(), "train/accuracy": torch.tensor(0.75)})

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(9.0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback):
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Toy(), torch.utils.data.DataLoader(torch.arange(20.0)), torch.utils.data.DataLoader(torch.arange(2.0)))


def test_training_logs_every_tenth(caplog):
    with caplog.at_level(logging.INFO, logger="mmrlhf.progress"):
        fit(TrainingProgress("sft", refresh_seconds=0.0))
    texts = [record.getMessage() for record in caplog.records if record.getMessage().startswith("sft:")]
    assert len(texts) == 11 and "started, 20 steps" in texts[0]
    assert texts[1].startswith("sft: 2/20 steps") and "loss 0.64  accuracy 0.75" in texts[1]
    assert any(record.getMessage().startswith("sft validation: 2/2") for record in caplog.records)


def test_training_on_a_terminal(terminal, monkeypatch):
    fit(TrainingProgress("sft", refresh_seconds=0.0))
    assert lines._display._progress is None
    shown = terminal.file.getvalue()
    assert "20/20" in shown and "accuracy 0.75" in shown and "val" not in shown.rsplit("20/20", 1)[1]


def test_a_disabled_bar_is_silent(caplog):
    with caplog.at_level(logging.INFO, logger="mmrlhf.progress"):
        fit(TrainingProgress("sft", enabled=False))
    assert not [record for record in caplog.records if record.name == "mmrlhf.progress"]
    assert progress.progress_enabled()
