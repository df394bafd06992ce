"""The study of rivals: what it collects from jobs, paired by seed and query."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mmrlhf.stages.sweep_results import read_jobs


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    path = Path(__file__).parents[1] / "experiments" / "03_rivals" / "run.py"
    specification = importlib.util.spec_from_file_location("rivals", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["rivals"] = module  # where dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["rivals"]


def job(folder: Path, method: str, seed: int, quality: float, flip: str = "0.32", failed: bool = False) -> None:
    """A job's folder with four answers around a quality."""
    overrides = [f"seed={seed}", f"stages.world.flip_rate={flip}", f"method={method}", "pairs=all"]
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if failed:
        (folder / "failure.json").write_text(json.dumps({"message": "no room"}))
        return
    (folder / "metrics.json").write_text(json.dumps({"evaluate": {"queries": 4}}))
    (folder / "artifacts" / "evaluate").mkdir(parents=True)
    rows = [
        {
            "key": f"query-{i}", "sample": 0, "quality": quality + 0.1 * (i % 2), "reward": 1.0, "logprob": -3.0,
            "reference_logprob": -4.0 - i,
        }
        for i in range(4)
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "artifacts" / "evaluate" / "samples.jsonl").write_text(lines)


def test_arms_are_summed_over_seeds_and_compared_query_by_query(study: ModuleType, tmp_path: Path) -> None:
    for number, (method, seed, quality) in enumerate(
        [("dpo", 0, 0.2), ("mmdpo", 0, 0.3), ("dpo", 1, 0.4), ("mmdpo", 1, 0.5)]
    ):
        job(tmp_path / str(number), method, seed, quality)
    job(tmp_path / "4", "mmdpo", 2, 0.9, failed=True)
    rows = study.summarise(study.read_arms(read_jobs(tmp_path)))
    dpo, mmdpo = (next(row for row in rows if row["method"] == name) for name in ("dpo", "mmdpo"))
    assert mmdpo["seeds"] == "0 1" and mmdpo["queries"] == 8
    assert mmdpo["quality"][0] == pytest.approx(0.45) and dpo["quality"][0] == pytest.approx(0.35)
    assert mmdpo["kl"][0] == pytest.approx(2.5)
    # The seeds differ by more than the arms do; paired, the gain is the same everywhere.
    assert mmdpo["gain_over_dpo"] == pytest.approx((0.1, 0.1, 0.1)) and dpo["gain_over_dpo"] is None
    assert mmdpo["quality_by_seed"] == pytest.approx({"0": 0.35, "1": 0.55})


def test_table_and_picture(study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (method, flip) in enumerate([("dpo", "0.0"), ("dpo", "0.32"), ("mmdpo", "0.32")]):
        job(tmp_path / "jobs" / str(number), method, 0, 0.3, flip)
    study.write_results(tmp_path / "out", study.summarise(study.read_arms(read_jobs(tmp_path / "jobs"))))
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["flip_rate"], row["method"]) for row in rows] == [("0.0", "dpo"), ("0.32", "dpo"), ("0.32", "mmdpo")]
    assert float(rows[2]["gain_over_dpo"]) == 0 and rows[1]["gain_over_dpo"] == ""
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
    assert "mmdpo" in (tmp_path / "out" / "results.md").read_text() and "mmdpo" in capsys.readouterr().out


def test_a_sweep_is_one_command(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, **_: calls.append(command))
    monkeypatch.setattr(study, "read_jobs", lambda folder: [])
    with pytest.raises(SystemExit, match="no job"):
        study.main(["--seeds", "0", "--out", str(tmp_path), "--results", str(tmp_path), "scale=tiny"])
    assert [call[-3] for call in calls] == ["pairs=all", "pairs=hardest"]
    assert all(call[1:3] == ["run.py", "-m"] and call[-1] == "scale=tiny" for call in calls)
    assert f"method={study.METHODS}" in calls[0] and f"{study.FLIP_RATE}=0.0,0.32" in calls[0]
