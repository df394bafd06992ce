"""Sweeps as commands: named grids, launchers, processes of each job, jobs that fail or are killed, a second run."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
from test_app import USUAL, start

SWEEP = "hydra.sweep.dir=sweep"
# the store tells the jobs apart by both settings
BOTH = "+stages.fake_train.policy=k-${method.k}"
TWO_PROCESSES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "distributed=[fake_train]"]
JOBLIB, SUBMITIT = "hydra_plugins.hydra_joblib_launcher", "hydra_plugins.hydra_submitit_launcher"
EXTRA = "needs the extra `sweeps`"
# several starts of Python, some of torchrun: a busy machine is no failure
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
sweep = partial(start, limit=1200)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def runs_of(store: Path, stage: str) -> int:
    """How often a stage was run, by all jobs together."""
    return len((store / f"{stage}.count").read_text())


def test_the_named_grid_is_nine_jobs_and_runs_none_again(tmp_path: Path, own_store: Path) -> None:
    first = sweep(tmp_path, *USUAL, BOTH, "sweep=wk_grid", SWEEP, expected=0)
    rows = rows_of(tmp_path / "sweep")
    assert [(row["method.w"], row["method.k"]) for row in rows] == [
        (w, k) for w in ("0.1", "0.5", "1.0") for k in ("0.25", "0.5", "1.0")
    ]
    assert runs_of(own_store, "fake_train") == 9 and "there already" not in first
    second = sweep(tmp_path, *USUAL, BOTH, "sweep=wk_grid", "hydra.sweep.dir=again", expected=0)
    assert runs_of(own_store, "fake_train") == 9 and "9 of them were there already" in " ".join(second.split())


def test_ablations_change_one_thing_each(tmp_path: Path, own_store: Path) -> None:
    changed = "+stages.fake_train.policy='${method._target_} ${data.critique} ${pairs.scheme}'"
    words = [word for word in USUAL if "fake_train=" not in word]
    train = "+stages.fake_train={_target_: fake_stages.train, data: 'stage:fake_world'}"
    sweep(tmp_path, *words, train, changed, "sweep=ablations", SWEEP, expected=0)
    names = [row["ablation"] for row in rows_of(tmp_path / "sweep")]
    assert names[0] == "full" and {"no_critique", "hardest_pairs", "dpo", "shuffled_margin"} <= set(names)
    assert runs_of(own_store, "fake_train") == len(names), "no two are the same"


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_every_job_starts_its_own_processes(tmp_path: Path, own_store: Path, launcher: str) -> None:
    words = [] if launcher == "basic" else [f"launcher={launcher}"]
    if words:
        pytest.importorskip(JOBLIB, reason=EXTRA)
    sweep(tmp_path, "-m", *USUAL, *TWO_PROCESSES, *words, "method.w=0.1,0.5", SWEEP, expected=0)
    assert [row["fake_train/world"] for row in rows_of(tmp_path / "sweep")] == ["2.0", "2.0"]
    parents = []
    for number in ("0", "1"):
        folder = tmp_path / "sweep" / number / "artifacts" / "fake_train"
        parents.append({(folder / f"parent{rank}").read_text() for rank in (0, 1)})
    assert [len(both) for both in parents] == [1, 1], "one torchrun started both ranks of a job"
    assert parents[0] != parents[1] and runs_of(own_store, "fake_world") == 1


@pytest.mark.parametrize(("launcher", "plugin"), [("joblib", JOBLIB), ("slurm_local", SUBMITIT)])
def test_parallel_jobs_build_what_they_share_once(tmp_path: Path, own_store: Path, launcher: str, plugin: str) -> None:
    pytest.importorskip(plugin, reason=EXTRA)
    words = [
        "-m",
        *USUAL,
        f"launcher={launcher}",
        SWEEP,
        "+stages.fake_train.policy=${if_needed:needs_margin,org/model}",
    ]
    screen = sweep(tmp_path, *words, "method.w=0.1,-1,0.5", expected=1)
    assert [bool(row["failure"]) for row in rows_of(tmp_path / "sweep")] == [False, True, False]
    assert "1 of 3 jobs failed" in screen and (tmp_path / "sweep" / "sweep.html").is_file()
    assert runs_of(own_store, "fake_world") == 1 and runs_of(own_store, "fake_train") == 2


def test_a_killed_job_is_listed(tmp_path: Path) -> None:
    pytest.importorskip(JOBLIB, reason=EXTRA)
    bug = "+stages.fake_bug={_target_: fake_stages.failing, kind: '${how}'}"
    words = ["-m", *USUAL[:3], "stage=fake_bug", bug, "launcher=joblib", SWEEP, "+how=user,killed"]
    screen = sweep(tmp_path, *words, expected=1)
    assert "the launcher stopped before all jobs had ended" in screen and "2 of 2 jobs failed" in screen
    assert "it left no results" in rows_of(tmp_path / "sweep")[1]["failure"]


def test_optuna_searches_for_the_first_number(tmp_path: Path, own_store: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=EXTRA)
    words = ["sweep=optuna", "hydra.sweeper.n_trials=4", "sweep_metrics.quality.path=fake_train/rate", SWEEP]
    sweep(tmp_path, *USUAL, BOTH, *words, expected=0)
    rows = rows_of(tmp_path / "sweep")
    rates = [float(row["fake_train/rate"]) for row in rows]
    assert len(rows) == 4 and len(set(rates)) == 4 and all(0 <= rate <= 2 for rate in rates)
    assert runs_of(own_store, "fake_train") == 4


def test_optuna_searches_without_the_truth(tmp_path: Path, own_store: Path) -> None:
    """`quality` exists in the embedded world only; a job that has no number at all ends the search at once."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=EXTRA)
    words = [*USUAL, BOTH, "sweep=optuna", "hydra.sweeper.n_trials=2", "sweep_metrics.reward.path=fake_train/rate"]
    screen = sweep(tmp_path, *words, SWEEP, expected=0)
    rates = [float(row["fake_train/rate"]) for row in rows_of(tmp_path / "sweep")]
    assert len(rates) == 2 and f"Best value: {max(rates)}" in screen and "Failed experiment" not in screen
    screen = sweep(tmp_path, *words[:-1], "hydra.sweep.dir=none", "hydra.sweeper.n_jobs=1", expected=2)
    assert "none of the numbers" in screen and "fake_train/rate" in screen
    assert not (tmp_path / "none" / "1").exists()
