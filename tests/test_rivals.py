"""The study of rivals: what it collects from jobs, paired by seed and query."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from stand_ins.scripts import loaded_script

from mmrlhf.sweeps.results import read_jobs


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with loaded_script("rivals", "experiments/03_rivals/run.py") as module:
        yield module


def job(
    folder: Path, method: str, seed: int, quality: float, flip: str = "0.32", *more: str, failed: bool = False
) -> None:
    """A job's folder with four answers around a quality."""
    overrides = [f"seed={seed}", f"stages.world.flip_rate={flip}", f"method={method}", "pairs=all", *more]
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
    # Gains that are all alike say nothing of how far they spread.
    assert mmdpo["gain_over_dpo"] == pytest.approx((0.1, math.nan, math.nan), nan_ok=True)
    assert dpo["gain_over_dpo"] is None
    assert dpo["mmdpo_ahead"] == pytest.approx((0.1, math.nan, math.nan), nan_ok=True) and mmdpo["mmdpo_ahead"] is None
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
    assert [call[-3] for call in calls] == ["pairs=all", "pairs=hardest", "pairs=all"]
    assert [Path(call[-2]).name for call in calls] == ["all", "hardest", "wk"]
    assert all(call[1:3] == ["run.py", "-m"] and call[-1] == "scale=tiny" for call in calls)
    assert f"method={study.METHODS}" in calls[0] and f"{study.FLIP_RATE}=0.0,0.32" in calls[0]
    assert calls[2][3:8] == [
        "seed=0",
        f"{study.FLIP_RATE}=0.0",
        "method=mmdpo",
        "method.w=0.1,0.5,1.0",
        "method.k=0.25,0.5,1.0",
    ]


@pytest.mark.parametrize("words", [["--flips", "0.32"], ["--w", ""], ["--k", ""]])
def test_the_grid_needs_unturned_rankings_and_both_settings(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, **_: calls.append(command))
    with pytest.raises(SystemExit, match="no job"):
        study.main(["--hardest", "", "--out", str(tmp_path / "absent"), "--results", str(tmp_path), *words])
    assert len(calls) == 1 and "pairs=all" in calls[0]


def test_the_grid_is_collected_beside_the_rivals(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "jobs"
    for seed in (0, 1):
        job(out / "all" / str(2 * seed), "dpo", seed, 0.3, "0.0")
        job(out / "all" / str(2 * seed + 1), "mmdpo", seed, 0.3 + 0.2 * seed, "0.0")
    number = 0
    for w in (0.5, 1.0, 0.1):
        for k in (1.0, 0.25):
            for seed in (0, 1):
                failed = (w, k, seed) == (0.1, 0.25, 1)
                settings = (f"method.w={w}", f"method.k={k}")
                job(out / "wk" / str(number), "mmdpo", seed, w * k, "0.0", *settings, failed=failed)
                number += 1
    study.main(["--collect", "--out", str(out), "--results", str(tmp_path / "results")])
    with (tmp_path / "results" / "wk.csv").open() as file:
        rows = list(csv.DictReader(file))
    places = [(row["w"], row["k"]) for row in rows]
    assert places == [("0.1", "0.25"), ("0.1", "1.0"), ("0.5", "0.25"), ("0.5", "1.0"), ("1.0", "0.25"), ("1.0", "1.0")]
    assert [row["seeds"] for row in rows] == ["0", *["0 1"] * 5]
    # every answer differs from DPO's to the same query by w k - .3, whatever the query
    gains = [float(row["gain_over_dpo"]) for row in rows]
    assert gains == pytest.approx([float(w) * float(k) - 0.3 for w, k in places], abs=1e-4)
    with (tmp_path / "results" / "results.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["dpo", "mmdpo"], "the grid is no rival"
    assert (tmp_path / "results" / "wk.png").stat().st_size > 1000
    screen = capsys.readouterr().out
    assert "left out, because it failed" in screen and "no room" in screen
