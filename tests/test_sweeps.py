"""Sweeps as commands: named grids, launchers, processes of each job, jobs that fail or are killed, a second run."""

from __future__ import annotations

import csv
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from stand_ins.commands import USUAL, WORLD, start

SWEEP = "hydra.sweep.dir=sweep"
# the store tells the jobs apart by both settings
BOTH = "+stages.fake_train.policy=k-${method.k}"
TWO_PROCESSES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "distributed=[fake_train]"]
# a stage with a Lightning Trainer, told apart by both settings
FIT = "+stages.fake_fit={_target_: stand_ins.fake_training.fit, data: 'stage:fake_world', rate: ${method.w}}"
REAL = ["logger=none", "callbacks=none", "stage=fake_fit", WORLD, FIT, "+stages.fake_fit.policy=k-${method.k}"]
JOBLIB, SUBMITIT = "hydra_plugins.hydra_joblib_launcher", "hydra_plugins.hydra_submitit_launcher"
EXTRA = "needs the extra `sweeps`"
# several starts of Python, some of torchrun: a busy machine is no failure
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
sweep = partial(start, limit=1200)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


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
    train = "+stages.fake_train={_target_: stand_ins.fake_stages.train, data: 'stage:fake_world'}"
    sweep(tmp_path, *words, train, changed, "sweep=ablations", SWEEP, expected=0)
    names = [row["ablation"] for row in rows_of(tmp_path / "sweep")]
    assert names[0] == "full" and {"no_critique", "hardest_pairs", "dpo", "shuffled_margin"} <= set(names)
    assert runs_of(own_store, "fake_train") == len(names), "no two are the same"


def test_nine_jobs_on_two_processes_each_are_nine_runs(tmp_path: Path, own_store: Path) -> None:
    """Every process has a Lightning Trainer: one that started its own ranks would start the whole sweep in each."""
    grid = ["method.w=0.1,0.5,1.0", "method.k=0.25,0.5,1.0"]
    words = [*REAL, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "distributed=[fake_fit]", *grid]
    sweep(tmp_path, "-m", *words, SWEEP, expected=0)
    rows = rows_of(tmp_path / "sweep")
    assert [(float(row["fake_fit/rate"]), row["fake_fit/world"], row["fake_fit/ranks"]) for row in rows] == [
        (w, "2.0", "3.0") for w in (0.1, 0.5, 1.0) for _ in range(3)
    ], "ranks 0 and 1 of two, which sum to 2^0 + 2^1"
    assert runs_of(own_store, "fake_fit") == 9 and runs_of(own_store, "fake_world") == 1
    assert len(list((own_store / "fake_fit").glob("*/artifact.json"))) == 9
    assert len(list(tmp_path.glob("**/.hydra"))) == 9, "no process started a sweep or a run of its own"


def test_a_preempted_job_is_submitted_again_and_goes_on(tmp_path: Path, own_store: Path) -> None:
    """submitit's signal first saves, and then has submitit's own handler submit the job again."""
    pytest.importorskip(SUBMITIT, reason=EXTRA)
    words = ["-m", *REAL, "trainer=cpu", "launcher=slurm_local", "+stages.fake_fit.preempted=2", "method.w=0.5"]
    sweep(tmp_path, *words, SWEEP, expected=0)
    (row,) = rows_of(tmp_path / "sweep")
    assert not row["failure"] and row["fake_fit/first"] == "3.0" and runs_of(own_store, "fake_fit") == 2


def test_a_sweep_that_is_stopped_says_where_and_goes_on(tmp_path: Path, own_store: Path) -> None:
    """The job that was training is recorded with its step; the same command continues it and runs the rest."""
    bug = "+stages.fake_bug={_target_: stand_ins.fake_stages.failing, kind: preempted}"
    words = ["-m", *USUAL[:3], "stage=fake_bug", bug, SWEEP, "method.w=0.5,1.0"]
    sweep(tmp_path, *words, expected=143)
    failure = tmp_path / "sweep" / "0" / "failure.json"
    assert "stopped after step 3" in failure.read_text() and not (tmp_path / "sweep" / "1").exists()
    sweep(tmp_path, *words, expected=0)
    assert not failure.exists() and len(rows_of(tmp_path / "sweep")) == 2


def test_two_machines_under_slurm_are_one_group(tmp_path: Path, own_store: Path) -> None:
    """What srun sets, on one machine: a task for each device of each machine."""
    common = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "test", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [*REAL, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    words += ["distributed=[fake_fit]", "hydra.run.dir=run"]
    with ThreadPoolExecutor(2) as pool:
        tasks = [
            pool.submit(start, tmp_path, *words, expected=0, **common, SLURM_PROCID=rank, SLURM_NODEID=rank)
            for rank in ("0", "1")
        ]
        screens = [task.result() for task in tasks]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["fake_fit"]
    assert (found["world"], found["ranks"]) == (2, 3.0) and runs_of(own_store, "fake_fit") == 1
    assert "fake_fit" in screens[0] and "fake_fit" not in screens[1], "one voice"


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


def test_jobs_at_once_share_the_gpus_out(tmp_path: Path) -> None:
    """No GPU is needed to see which ones a job is shown."""
    pytest.importorskip(JOBLIB, reason=EXTRA)
    words = ["-m", *USUAL, BOTH, "trainer=gpu", "launcher=joblib", "method.w=0.1,0.5,1.0", SWEEP]
    sweep(tmp_path, *words, expected=0, CUDA_VISIBLE_DEVICES="4,5,6,7,8")
    seen = {path.read_text() for path in (tmp_path / "sweep").glob("*/artifacts/fake_train/gpus0")}
    assert seen and seen <= {"4,5", "6,7"}
    screen = sweep(tmp_path, *words, "hydra.launcher.n_jobs=6", expected=2, CUDA_VISIBLE_DEVICES="4,5,6,7,8")
    assert "fewer GPUs" in screen and "hydra.launcher.n_jobs=5" in screen


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
    bug = "+stages.fake_bug={_target_: stand_ins.fake_stages.failing, kind: '${how}'}"
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
    screen = sweep(tmp_path, *words, SWEEP, "dry=true", expected=0)
    assert "would be built" in screen or "reused" in screen
    assert "it ends at its first" in screen and "none of the numbers" not in screen
