"""Held-out answers: beside the reference's of step 0, at every validation, and found again after a resume."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from mmrlhf.callbacks.answers import HeldOutAnswers
from mmrlhf.summaries.validation_files import read_steps

SAMPLES = [
    {"key": f"query-{i}", "category": "short", "prompt": "what ?", "image": None, "frames": []} for i in range(2)
]


class Trainer(SimpleNamespace):
    """As much of a trainer as the callback asks for; keeps what is logged."""

    def __init__(self, step: int) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.barriers: list[str] = []
        target = SimpleNamespace(log_metrics=lambda values, step: self.logged.append((step, dict(values))))
        super().__init__(
            global_step=step, is_global_zero=True, sanity_checking=False, loggers=[target],
            strategy=SimpleNamespace(barrier=self.barriers.append, broadcast=lambda value: value),
        )  # fmt: skip


def build(folder: Path, answers: list[str]) -> tuple[HeldOutAnswers, Any]:
    model = nn.Dropout()
    callback = HeldOutAnswers(
        folder, SAMPLES, answer=lambda _: answers, measure=lambda texts: {"length": [float(len(t)) for t in texts]}
    )
    return callback, SimpleNamespace(model=model)


def test_answers_lie_beside_the_references(tmp_path: Path) -> None:
    answers = ["a", "bb"]
    callback, module = build(tmp_path, answers)
    callback.on_train_start(Trainer(0), module)  # type: ignore[arg-type]
    answers[:] = ["aaa", "bbbb"]
    trainer = Trainer(7)
    callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (tmp_path / "step-00000007.jsonl").read_text().splitlines()]
    assert [(row["reference"], row["answer"]) for row in rows] == [("a", "aaa"), ("bb", "bbbb")]
    assert rows[1]["length_reference"] == 2 and rows[1]["length"] == 4
    assert trainer.logged == [(7, {"heldout/length": 3.5, "heldout/length_gain": 2.0})]


def test_a_query_without_a_number_is_in_no_mean(tmp_path: Path) -> None:
    """A reward model that refuses one query's picture costs that query and no curve; a gain is of the same queries."""
    found = iter([[1.0, float("nan"), 5.0], [4.0, 7.0, float("nan")]])
    samples = [{**SAMPLES[0], "key": f"query-{i}"} for i in range(3)]
    texts = ["a", "b", "c"]
    callback = HeldOutAnswers(
        tmp_path, samples, answer=lambda _: texts, measure=lambda _: {"reward": next(found), "quality": [math.nan] * 3}
    )
    module: Any = SimpleNamespace(model=nn.Dropout())
    callback.on_train_start(Trainer(0), module)  # type: ignore[arg-type]
    trainer = Trainer(7)
    callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert trainer.logged == [(7, {"heldout/reward": 5.5, "heldout/reward_gain": 3.0})]


def test_a_resumed_run_finds_the_references_answers(tmp_path: Path) -> None:
    first, module = build(tmp_path, ["a", "bb"])
    first.on_train_start(Trainer(0), module)  # type: ignore[arg-type]
    again, module = build(tmp_path, ["changed", "since"])
    again.on_train_start(Trainer(5), module)  # type: ignore[arg-type]
    trainer = Trainer(6)
    again.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert trainer.logged[0][1]["heldout/length_gain"] == pytest.approx(6 - 1.5)


def test_without_the_references_answers_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback, module = build(tmp_path, ["a", "bb"])
    with caplog.at_level(logging.WARNING):
        callback.on_train_start(Trainer(5), module)  # type: ignore[arg-type]
    trainer = Trainer(6)
    callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert "without the reference's" in caplog.text
    assert trainer.logged[0][1] == {"heldout/length": 1.5}


def test_the_model_stays_in_its_mode(tmp_path: Path) -> None:
    callback, module = build(tmp_path, ["a", "bb"])
    module.model.train()
    callback.on_train_start(Trainer(0), module)  # type: ignore[arg-type]
    assert module.model.training


def test_a_late_rank_does_as_rank_0_did(tmp_path: Path) -> None:
    """It finds the file that rank 0 has written by then, and has to be at the same barrier all the same."""
    first, module = build(tmp_path, ["a", "bb"])
    first.on_train_start(Trainer(0), module)  # type: ignore[arg-type]
    late, trainer = build(tmp_path, ["a", "bb"])[0], Trainer(0)
    trainer.is_global_zero = False
    trainer.strategy.broadcast = lambda value: False
    late.on_train_start(trainer, module)  # type: ignore[arg-type]
    assert trainer.barriers == ["reference answers"]


def test_a_kill_leaves_no_half_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report reads every file that is there, and a resumed run does not validate again behind this step."""

    def killed(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    callback, module = build(tmp_path, ["a", "bb"])
    callback.on_train_start(Trainer(0), module)  # type: ignore[arg-type]
    monkeypatch.setattr(Path, "write_bytes", killed)
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding: killed(path, text.encode(encoding)))
    with pytest.raises(KeyboardInterrupt):
        callback.on_validation_end(Trainer(7), module)  # type: ignore[arg-type]
    assert read_steps(tmp_path) == []
