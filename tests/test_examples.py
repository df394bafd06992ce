"""The notebook: its code cells run from top to bottom on a run's folder, and it is kept without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "score_answers.ipynb"


def _cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs() -> None:
    assert len(_cells()) >= 4
    assert not [cell for cell in _cells() if cell["outputs"] or cell["execution_count"] is not None]


def test_its_cells_run(
    scalar_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interval = {"mean": 0.7, "low": 0.6, "high": 0.8}
    own = {"acc": interval, "acc_plus": {**interval, "mean": 0.65}}
    summary = {"score": {"heldout": {"accuracy": {"annotators": {"reward model": own}}}}}
    for time, content in (("09-00-00-older", {}), ("10-00-00-newer", summary)):
        run = tmp_path / "outputs" / "report" / "2026-01-01" / time
        (run / "artifacts" / "reward").mkdir(parents=True)
        (run / "artifacts" / "reward" / "model").symlink_to(scalar_model)
        (run / "metrics.json").write_text(json.dumps(content))
        (run / "report.html").write_text("")
        os.utime(run, (len(content), len(content)))
    monkeypatch.delenv("JUDGE", raising=False)
    monkeypatch.delenv("RUN", raising=False)
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    names: dict[str, Any] = {}
    for number, cell in enumerate(_cells()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(names["scores"]) == 3 and all(isinstance(reward, float) for reward, _ in names["scores"])
    printed = capsys.readouterr().out
    assert "0.650 [0.600, 0.800]" in printed and all(answer in printed for answer in names["answers"])
