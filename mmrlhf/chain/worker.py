"""One stage on several processes: what its launcher hands them, and what they hand back.

Everything lies in a folder of the stage's own beside the one that is filled, which only the holder of its lock uses.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf import errors
from mmrlhf.chain.launch import WorkerFailed, run_processes
from mmrlhf.errors import Lines, UserError
from mmrlhf.files import write_json
from mmrlhf.processes import TrainingInterrupted, leave_group
from mmrlhf.trees import plain

log = logging.getLogger(__name__)

WORKER = ("mmrlhf.app", "--worker")
SUMMARY_FILE, ERROR_FILE, STOPPED_FILE, CALL_FILE = "summary.json", "error.json", "stopped.json", "call.json"
INTERRUPTED_FILE = "interrupted"
PID_FILES = "*.pid"


@dataclass(frozen=True)
class StageCall:
    """Everything that a process needs to run one stage, as plain JSON: no object has been made of it yet.

    Args:
        stage: the stage's name.
        target: dotted name of its function.
        settings: keyword arguments, inputs already replaced by paths.
        out: folder to fill.
        runtime: settings of the Runtime; `runtime["trainer"]` holds accelerator, devices, strategy, num_nodes.
    """

    stage: str
    target: str
    settings: Mapping[str, Any]
    out: str
    runtime: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the call for another process."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> StageCall:
        """Read a call that `save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


Invoke = Callable[[StageCall], Mapping[str, Any]]


def launch(call: StageCall, folder: Path, *, num_processes: int, log_file: Path) -> Mapping[str, Any]:
    """Run a stage on several processes of this machine; returns its summary.

    Args:
        folder: for what the processes exchange; emptied before, removed once they are done.
        log_file: gets what they print.

    Raises:
        UserError: as the stage raised it. WorkerFailed: they ended for another reason.
        TrainingInterrupted: they stopped on a signal, after saving. KeyboardInterrupt: on Ctrl-C, outside of training.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        call.save(folder / CALL_FILE)
        log.info("%s: starting %d processes", call.stage, num_processes)
        code = run_processes(
            [*WORKER, str(folder / CALL_FILE)],
            num_processes=num_processes,
            log_file=log_file,
            workers=lambda: [int(path.stem) for path in folder.glob(PID_FILES)],
        )
        if (folder / STOPPED_FILE).exists():
            raise _read_stop(folder / STOPPED_FILE)
        if (folder / ERROR_FILE).exists():
            raise read_error(folder / ERROR_FILE)
        if code != 0 or not (folder / SUMMARY_FILE).exists():
            raise WorkerFailed(
                f"stage {call.stage} failed on its {num_processes} processes (exit code {code}); "
                f"what they printed is in {log_file}"
            )
        return json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except SystemExit:
        if (folder / INTERRUPTED_FILE).exists():
            raise KeyboardInterrupt from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def work_on(call_file: Path, invoke: Invoke, rank: int) -> int:
    """Be one process of a stage that `launch` started: run the call, leave its summary or its error beside it."""
    folder = Path(call_file).parent
    (folder / f"{os.getpid()}.pid").touch()
    try:
        summary = invoke(StageCall.load(call_file))
    except UserError as error:
        # the first rank to get here tells; the others stop for the same reason
        if not (folder / ERROR_FILE).exists():
            write_error(folder / ERROR_FILE, error)
        return 2
    except KeyboardInterrupt:
        (folder / INTERRUPTED_FILE).touch()
        return 0
    except TrainingInterrupted as stop:
        # a rank that knows the signal tells, whoever comes first
        if stop.signal is not None or not (folder / STOPPED_FILE).exists():
            write_json(folder / STOPPED_FILE, {"message": str(stop), "signal": stop.signal and stop.signal.name})
        return 0
    if rank == 0:
        write_json(folder / SUMMARY_FILE, plain(summary))
    leave_group()
    return 0


def _read_stop(path: Path) -> TrainingInterrupted:
    content = json.loads(path.read_text(encoding="utf-8"))
    return TrainingInterrupted(content["message"], content["signal"] and signal.Signals[content["signal"]])


def write_error(path: Path, error: UserError) -> None:
    """Write a user's mistake so that another process can raise it again."""
    fields = ("problem", "where", "given", "expected", "fix", "argument")
    given = {name: value for name in fields if (value := getattr(error, name)) is not None}
    values = {name: list(value) if isinstance(value, Lines) else str(value) for name, value in given.items()}
    write_json(path, {"kind": type(error).__name__, **values})


def read_error(path: Path) -> UserError:
    """Read a user's mistake that another process wrote."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    kind = getattr(errors, content.pop("kind"), UserError)
    fields: dict[str, Any] = {
        name: Lines(value) if isinstance(value, list) else value for name, value in content.items()
    }
    return kind(fields.pop("problem"), **fields)
