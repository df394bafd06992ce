"""The study of methods at equal KL: what it runs, and what it makes of the answers that its jobs leave."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from stand_ins.scripts import loaded_script

QUERIES = 24


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with loaded_script("equal_kl", "experiments/04_equal_kl/study.py") as module:
        yield module


def job(folder: Path, stage: str, quality: float, ratio: float, overrides: list[str], *, failed: bool = False) -> None:
    """A job's folder: two answers to each query, all at one distance; quality differs from query to query by .1."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if failed:
        (folder / "failure.json").write_text(json.dumps({"message": "no room"}))
        return
    (folder / "metrics.json").write_text(json.dumps({stage: {"queries": QUERIES}}))
    (folder / "artifacts" / stage).mkdir(parents=True)
    rows = [
        {
            "key": f"query-{i}", "sample": sample, "quality": quality + 0.1 * (i % 2), "logprob": -3.0,
            "reference_logprob": None if stage == "evaluate_before" else -3.0 - ratio,
        }
        for i in range(QUERIES)
        for sample in (0, 1)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "artifacts" / stage / "samples.jsonl").write_text(text)


def k3(ratio: float) -> float:
    return math.exp(-ratio) - 1 + ratio


def test_every_arm_is_run_once_and_the_most_telling_first(study: ModuleType) -> None:
    planned = list(study.sweeps(("0", "1", "2"), study.FLIPS, study.PARTS, study.METHODS))
    assert len({sweep.name for sweep in planned}) == len(planned)
    jobs = {part: sum(sweep.jobs for sweep in planned if sweep.part == part) for part in (study.START, *study.PARTS)}
    assert jobs == {study.START: 3, "methods": 96, "strong": 48, "negative": 24, "hardest": 48, "wk": 48}
    order = list(dict.fromkeys((sweep.part, sweep.seed) for sweep in planned))
    assert order[:4] == [(study.START, "0"), ("methods", "0"), (study.START, "1"), ("methods", "1")]
    whole = next(sweep for sweep in planned if sweep.name == "methods-0-0.32-0").words
    own = next(sweep for sweep in planned if sweep.name == "methods-0-0.32-1").words
    assert "method.beta=0.1,0.4" in whole and "method=uni_dpo" in own and "method.beta=2,8" in own
    assert "inputs.shards=stage:pack_turned" in whole and "flip_rate: 0.32}" in " ".join(whole)
    assert not any("turned" in word for sweep in planned if sweep.flip == "0.0" for word in sweep.words)


def leave(out: Path, study: ModuleType) -> None:
    """Two seeds of two methods at both flip rates; DPO's strongest beta for one seed alone."""
    for seed in ("0", "1"):
        job(out / f"start-{seed}" / "0", "evaluate_before", 0.2, 0.0, [f"seed={seed}"])
        for flip in study.FLIPS:
            folder = out / f"methods-{seed}-{flip}-0"
            far = [("dpo", 0.1, 0.4, 0.8), ("dpo", 0.4, 0.3, 0.4), ("mmdpo", 0.1, 0.5, 0.6), ("mmdpo", 0.4, 0.35, 0.4)]
            for number, (method, beta, quality, ratio) in enumerate(far):
                words = [f"seed={seed}", f"method={method}", f"method.beta={beta}"]
                job(folder / str(number), "evaluate", quality, ratio, words)
    words = ["seed=0", "method=dpo", "method.beta=1.6"]
    job(out / "strong-0-0.0-0" / "0", "evaluate", 0.25, 0.2, words)
    job(out / "strong-0-0.0-0" / "1", "evaluate", 0.25, 0.2, ["method=mmdpo", "method.beta=1.6"], failed=True)


def test_methods_are_compared_where_they_are_equally_far(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "out", study)
    asked = ["--collect", "--seeds", "0,1", "--methods", "dpo,mmdpo", "--out", str(tmp_path / "out")]
    study.main([*asked, "--results", str(tmp_path / "results")])
    with (tmp_path / "results" / "equal.csv").open(encoding="utf-8") as file:
        rows = {(row["flip rate"], row["KL"], row["arm"]): row for row in csv.DictReader(file)}
    near, far = (0.9 * k3(ratio) for ratio in (0.6, 0.8))  # of the method that goes least far, and of the next
    arms = [(flip, f"{kl:.3f}", arm) for flip in study.FLIPS for kl in (near, far) for arm in ("dpo", "mmdpo")]
    assert list(rows) == arms

    def part(distance: float, furthest: float) -> float:
        """How far along the way from the nearer beta's point to the further one's."""
        ends = (math.sqrt(k3(ratio)) for ratio in (0.4, furthest))
        first, last = ends
        return (math.sqrt(distance) - first) / (last - first)

    dpo, mmdpo = (rows["0.32", f"{near:.3f}", arm] for arm in ("dpo", "mmdpo"))
    lead = 0.35 + 0.15 * part(near, 0.6) - (0.3 + 0.1 * part(near, 0.8))
    assert dpo["points"] == "2" and dpo["seeds"] == "0 1"
    assert float(mmdpo["over dpo"]) == pytest.approx(lead, abs=1e-4) and mmdpo["over mmdpo"] == ""
    assert float(dpo["over mmdpo"]) == pytest.approx(-lead, abs=1e-4)
    more = 0.1 * (part(far, 0.8) - part(near, 0.8)) + float(dpo["quality"])
    dpo, mmdpo = (rows["0.32", f"{far:.3f}", arm] for arm in ("dpo", "mmdpo"))
    assert float(dpo["quality"]) == pytest.approx(more, abs=2e-4)
    assert mmdpo["quality"] == mmdpo["over dpo"] == dpo["over mmdpo"] == "", "it has not gone so far"
    with (tmp_path / "results" / "points.csv").open(encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 9 and {row["beta x"] for row in points} == {"1", "4", "16"}
    assert float(points[0]["kl k1"]) == pytest.approx(0.8)
    assert (tmp_path / "results" / "equal.png").stat().st_size > 1000
    with (tmp_path / "results" / "curves.csv").open(encoding="utf-8") as file:
        along = {row["flip rate"]: row for row in csv.DictReader(file) if row["over dpo"] == "mmdpo"}
    assert float(along["0.32"]["KL 0.05"]) == pytest.approx(0.05 * math.sqrt(0.05 / k3(0.4)), abs=1e-4)
    assert along["0.32"]["KL 0.3"] == "", "nobody has gone so far"
    assert "no room" in capsys.readouterr().out


def test_a_strength_of_some_seeds_does_not_take_the_others_away(study: ModuleType) -> None:
    def said(seeds: str, quality: float) -> dict[str, tuple[float, float, float]]:
        return {f"{seed}/{i}": (quality, quality, 0.0) for seed in seeds for i in range(3)}

    arm = study.Arm("methods", "0.0", "dpo", {1.0: said("012", 0.5), 4.0: said("01", 0.4), 16.0: said("0", 0.3)})
    made = study.curve(arm, said("012", 0.0))
    assert made.quality.shape == (6, 3), "seeds 0 and 1; the reference and two strengths"
    arm.answers[16.0] = said("012", 0.3)
    assert study.curve(arm, said("012", 0.0)).quality.shape == (6, 4)


def test_the_best_cell_of_one_half_is_measured_on_the_other(study: ModuleType) -> None:
    keys = [f"0/query-{number}" for number in range(60)]
    half = dict(zip(keys, study.halves(keys).tolist(), strict=True))

    def arm(name: str, first: float, second: float) -> object:
        values = {key: (second if half[key] else first, 0.1, 0.1) for key in keys}
        return study.Arm("wk", "0.0", name, {1.0: values})

    grid = [arm("w=0.5 k=0.5", 0.4, 0.4), arm("w=4 k=1", 0.6, 0.3), arm("w=1 k=1", 0.3, 0.5)]
    rows = {row["cell"]: row for row in study.chosen_elsewhere(grid, None)}
    share = sum(half.values()) / 60
    chosen, elsewhere = (next(row for cell, row in rows.items() if end in cell) for end in ("chosen", "other half"))
    assert float(chosen["quality"]) == pytest.approx(0.6 * (1 - share) + 0.5 * share, abs=1e-4)
    assert float(elsewhere["quality"]) == pytest.approx(0.3, abs=1e-4)
    assert float(elsewhere["over the paper's"]) == pytest.approx(-0.1, abs=1e-4)


def test_what_is_done_is_not_started_again(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, **_: calls.append(command) or SimpleNamespace())
    asked = ["--seeds", "0", "--flips", "0.0", "--parts", "methods", "--methods", "dpo,uni_dpo", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="no jobs"):
        study.main([*asked, "scale=tiny"])
    assert len(calls) == 3 and all(call[1:3] == ["run.py", "-m"] and call[-1] == "scale=tiny" for call in calls)
    calls.clear()
    job(tmp_path / "start-0" / "0", "evaluate_before", 0.2, 0.0, ["seed=0"])
    for number, beta in enumerate((0.1, 0.4)):
        words = ["method=dpo", f"method.beta={beta}"]
        job(tmp_path / "methods-0-0.0-0" / str(number), "evaluate", 0.3, 0.2 + beta, words)
    study.main([*asked, "--results", str(tmp_path / "results")])
    assert [Path(call[-1]).name for call in calls] == ["methods-0-0.0-1"]
