"""Processes: how many a training stage needs, which of them this one is, and starting them with torchrun."""

from __future__ import annotations

import logging
import os
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mmrlhf.processes import PREEMPTION

log = logging.getLogger(__name__)


# the folder that the package lies in: a checkout, or one that packages are installed into
PROJECT = Path(__file__).resolve().parents[2]
EXIT_INTERRUPTED = 128 + signal.SIGTERM


class WorkerFailed(RuntimeError):
    """A process group ended with an error that is no user mistake; its log says which."""


def single_process(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Copy trainer settings for a stage that one process runs alone: the same accelerator, one device."""
    return {**trainer, "devices": 1, "num_nodes": 1, "strategy": "auto"}


def run_processes(
    arguments: Sequence[str], *, num_processes: int, log_file: Path, workers: Callable[[], Sequence[int]]
) -> int:
    """Run `python -m arguments...` on several processes of this machine with torchrun, and return its exit code.

    Output streams through to the terminal and into `log_file`. A signal of preemption is passed on to the workers
    themselves, because torchrun would kill them 30 seconds after passing it on, be the checkpoint written or not; they
    save and stop, and this process hands the signal on (`hand_on`) and ends then. A second Ctrl-C ends everything at
    once.

    Args:
        workers: finds the workers' process ids, as far as they have started.

    Raises:
        SystemExit: the processes ended after a signal.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={num_processes}", "-m", *arguments]
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    env = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, "PYTHONUNBUFFERED": "1"}
    env |= search_path(env.get("PYTHONPATH"))
    log.debug("starting %s", " ".join(command))
    with log_file.open("wb") as copy:
        # a process group of its own: Ctrl-C in a terminal then reaches this process alone
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, process_group=0)
        assert child.stdout is not None
        try:
            with _passing_on(child, workers) as received:
                _stream(child.stdout, copy)
                code = child.wait()
            if received:
                hand_on(received[0])
                raise SystemExit(EXIT_INTERRUPTED)
            return code
        finally:
            _end(child)


def search_path(given: str | None, project: Path = PROJECT) -> dict[str, str]:
    """Say what PYTHONPATH lets other processes find this package from any folder; given: what it is now.

    A folder that Python looks in anyway is left out: on PYTHONPATH it would come before the standard library.
    """
    if str(project) in (*site.getsitepackages(), site.getusersitepackages()):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(project), given]))}


def _stream(source: IO[bytes], copy: IO[bytes]) -> None:
    # read1: whatever is there, without waiting for a line's end (progress bars rewrite one line)
    while chunk := source.read1():  # type: ignore[attr-defined]
        copy.write(chunk)
        copy.flush()
        sys.stdout.write(chunk.decode(errors="replace"))
        sys.stdout.flush()


def hand_on(number: int) -> bool:
    """Give a signal that training has taken, and saved for, to the handler that a launcher had installed for it.

    submitit's submits a job again that its time limit, or a more urgent one, ends. Training and `run_processes` put
    handlers of their own in its place while they run, and the launcher's back afterwards.

    Returns whether there was such a handler; it may also end the process.
    """
    handler = signal.getsignal(number)
    if not callable(handler) or handler is signal.default_int_handler:
        return False
    handler(number, None)
    return True


@contextmanager
def _passing_on(child: subprocess.Popen[bytes], workers: Callable[[], Sequence[int]]) -> Iterator[list[int]]:
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return

    def pass_on(number: int, _frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        started = workers()
        for worker in started:
            with suppress(ProcessLookupError):
                os.kill(worker, number)
        if not started:
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in PREEMPTION}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(child: subprocess.Popen[bytes], patience: float = 30.0) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()
