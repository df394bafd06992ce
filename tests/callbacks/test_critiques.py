"""Held-out critiques: kept on disk and in W&B after every validation, by rank 0 alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mmrlhf.callbacks import critiques
from mmrlhf.callbacks.critiques import HeldOutCritiques
from mmrlhf.summaries.validation_files import read_steps

RESPONSES = [{"text": "a <b>", "rank": 1, "reward": 0.5, "critique": "ü"}]
SAMPLES = [
    {
        "key": f"query-{number}",
        "category": "short",
        "prompt": "what ?",
        "image": Image.new("RGB", (8, 8)),
        "frames": [],
        "responses": RESPONSES,
    }
    for number in range(2)
]


def validate(callback: HeldOutCritiques, step: int, **trainer: Any) -> list[str]:
    """End a validation; returns the barriers that were waited at."""
    barriers: list[str] = []
    given = {"global_step": step, "is_global_zero": True, "sanity_checking": False, "loggers": [], **trainer}
    callback.on_validation_end(SimpleNamespace(**given, strategy=SimpleNamespace(barrier=barriers.append)), None)  # type: ignore[arg-type]
    return barriers


def test_every_validation_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Any] = []
    monkeypatch.setattr(critiques, "log_samples", lambda *given, **named: tables.append((given[1], named["step"])))
    callback = HeldOutCritiques(tmp_path / "critiques", lambda module: SAMPLES)
    validate(callback, 3)
    validate(callback, 40)
    files = sorted((tmp_path / "critiques").iterdir())
    assert [file.name for file in files] == ["step-00000003.jsonl", "step-00000040.jsonl"]
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert [row["key"] for row in rows] == ["query-0", "query-1"] and rows[0]["responses"] == RESPONSES
    assert tables == [(SAMPLES, 3), (SAMPLES, 40)], "pictures go to W&B"


def test_other_ranks_and_sanity_checks_judge_nothing(tmp_path: Path) -> None:
    def fail(module: Any) -> list[dict[str, Any]]:
        raise AssertionError("nobody asked")

    callback = HeldOutCritiques(tmp_path / "critiques", fail)
    assert validate(callback, 3, is_global_zero=False) == ["held-out critiques"], "they wait for rank 0"
    assert validate(callback, 0, sanity_checking=True) == []
    validate(HeldOutCritiques(tmp_path / "critiques", lambda module: []), 3)
    assert not (tmp_path / "critiques").exists()


def test_a_kill_leaves_no_half_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding: killed(path, text.encode(encoding)))
    with pytest.raises(KeyboardInterrupt):
        validate(HeldOutCritiques(tmp_path, lambda module: SAMPLES), 3)
    assert read_steps(tmp_path) == []
