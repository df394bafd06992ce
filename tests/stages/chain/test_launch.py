"""A signal to the process that launched a group reaches its workers, which get the time that they need."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mmrlhf.stages.chain.launch import EXIT_INTERRUPTED, PROJECT, run_processes

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

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit, match=str(EXIT_INTERRUPTED)):
        run_processes(
            ["worker_of_the_test", str(tmp_path)], num_processes=2, log_file=tmp_path / "log", workers=workers
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0-SIGUSR1", "saved-1-SIGUSR1"]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_workers_find_this_package() -> None:
    """What the workers' PYTHONPATH gets is the folder that holds the package, and not one inside of it."""
    assert (PROJECT / "mmrlhf" / "app.py").is_file()
