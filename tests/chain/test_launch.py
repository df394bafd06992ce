"""A signal to the process that launched a group reaches its workers, which get the time that they need."""

from __future__ import annotations

import os
import signal
import site
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmrlhf.app import leave
from mmrlhf.chain.launch import EXIT_INTERRUPTED, PROJECT, hand_on, run_processes, search_path
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.store import Store
from mmrlhf.processes import Group, TrainingInterrupted

WORKER = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
    (folder / f"saved-{os.environ['RANK']}-{signal.Signals(number).name}").touch()
    sys.exit(0)
signal.signal(signal.SIGUSR1, save)
(folder / f"{os.getpid()}.pid").touch()
time.sleep(200)
"""


@pytest.mark.slow
def test_a_signal_reaches_every_worker_and_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker_of_the_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def workers() -> list[int]:
        return [int(path.stem) for path in tmp_path.glob("*.pid")]

    def send() -> None:
        while len(workers()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    saved: list[list[str]] = []

    def requeue(number: int, frame: object) -> None:
        saved.append(sorted(path.name for path in tmp_path.glob("saved-*")))

    before = signal.signal(signal.SIGUSR1, requeue)  # as submitit does
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with pytest.raises(SystemExit, match=str(EXIT_INTERRUPTED)):
        run_processes(
            ["worker_of_the_test", str(tmp_path)], num_processes=2, log_file=tmp_path / "log", workers=workers
        )  # fmt: skip
    assert saved == [["saved-0-SIGUSR1", "saved-1-SIGUSR1"]], "the launcher's handler has its turn once, after saving"
    assert signal.signal(signal.SIGUSR1, before) == requeue


@pytest.mark.parametrize("other", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
def test_only_a_launchers_handler_is_handed_a_signal(other: Any) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    try:
        assert hand_on(signal.SIGUSR2) and received == [signal.SIGUSR2]
        signal.signal(signal.SIGUSR2, other)
        assert not hand_on(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(("rank", "code"), [(0, EXIT_INTERRUPTED), (1, 0)])
def test_an_interrupted_job_leaves_as_its_launcher_says(monkeypatch: pytest.MonkeyPatch, rank: int, code: int) -> None:
    """Rank 0 ends with 143 where nothing submits it again; a later rank does not end the others by failing."""
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank)}.items():
        monkeypatch.setenv(name, value)
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    try:
        with pytest.raises(SystemExit) as stop:
            leave(TrainingInterrupted("stopped by SIGTERM, says the text", signal.SIGUSR2))
        assert stop.value.code == code and received == [signal.SIGUSR2]
        with pytest.raises(SystemExit, match=str(EXIT_INTERRUPTED)):
            leave(TrainingInterrupted("stopped by SIGUSR2, says the text", signal.SIGTERM))
        with pytest.raises(SystemExit, match=str(EXIT_INTERRUPTED)):
            leave(TrainingInterrupted("stopped by SIGUSR2 to another rank", None))
        assert len(received) == 1
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_job_that_slurm_started_again_is_another_launch() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    first, again = Group.from_environment(step), Group.from_environment({**step, "SLURM_RESTART_COUNT": "1"})
    assert (first.rank, first.size) == (again.rank, again.size) == (9, 16) and first.launch != again.launch


@pytest.mark.parametrize(("machines", "devices", "tasks"), [(1, 1, 1), (1, 8, 1), (2, 8, 8), (4, 1, 1)])
def test_slurm_starts_the_processes_of_several_machines(machines: int, devices: int, tasks: int) -> None:
    """srun's tasks are as many as the chain asks for; on one machine torchrun starts them."""
    config = OmegaConf.create(
        {"tasks": "${slurm_tasks:${machines},${devices}}", "machines": machines, "devices": devices}
    )
    assert config.tasks == tasks
    if machines > 1:
        trainer = {"num_nodes": machines, "devices": devices, "accelerator": "cpu"}
        group = Group(0, machines * config.tasks, "slurm")
        assert Runner(Store(Path("none")), dict, runtime={"trainer": trainer}, work=Path(), group=group).num_processes


def test_workers_find_this_package() -> None:
    """What the workers' PYTHONPATH gets is the folder that holds the package, and not one inside of it."""
    assert (PROJECT / "mmrlhf" / "app.py").is_file()
    assert search_path("mine", Path("project")) == {"PYTHONPATH": os.pathsep.join(("project", "mine"))}
    assert search_path(None, Path("project")) == {"PYTHONPATH": "project"}


def test_where_packages_are_installed_is_not_put_before_the_standard_library() -> None:
    for folder in site.getsitepackages():
        assert search_path("mine", Path(folder)) == {}
