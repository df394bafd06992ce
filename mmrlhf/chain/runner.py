"""Runs a chain of stages: reuses what the store has, builds the rest, each training stage on its own processes."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf import errors
from mmrlhf.chain.fingerprint import artifact_token, digest, input_tokens
from mmrlhf.chain.launch import EXIT_INTERRUPTED, WorkerFailed, run_processes, single_process
from mmrlhf.chain.order import Node, determinants, is_reusable, replace_references
from mmrlhf.chain.store import Artifact, Recipe, Store, plain
from mmrlhf.errors import ConfigError, UserError
from mmrlhf.files import write_json
from mmrlhf.processes import Group, count_devices, leave_group, outside_group

log = logging.getLogger(__name__)

WORKER = ("mmrlhf.app", "--worker")
SUMMARY_FILE, ERROR_FILE, LOG_FILE, CALL_FILE = "summary.json", "error.json", "processes.log", "call.json"
STOPPED_FILE, PID_FILES = "stopped.txt", "*.pid"


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
        return cls(**json.loads(Path(path).read_text()))


Invoke = Callable[[StageCall], Mapping[str, Any]]


class Runner:
    """Builds the stages of a chain in order.

    Args:
        store: where artefacts are.
        invoke: makes the objects that a call's settings describe and calls the stage function.
        runtime: plain settings of the Runtime, with `trainer`.
        inputs: values that are inputs of the user's (paths or hub ids), fingerprinted by content where they exist.
        distributed: names of the stages that run on all devices; others use one.
        work: folder for the process logs of this run.
        group: the process group that this process is already in.
    """

    def __init__(
        self,
        store: Store,
        invoke: Invoke,
        *,
        runtime: Mapping[str, Any],
        inputs: Collection[str] = (),
        distributed: Collection[str] = (),
        work: Path,
        group: Group | None = None,
    ) -> None:
        self.store, self.invoke, self.runtime = store, invoke, dict(runtime)
        self.inputs, self.distributed, self.work = frozenset(inputs), frozenset(distributed), Path(work)
        self.group = group or Group.from_environment()
        trainer = self.runtime.get("trainer", {})
        self.num_nodes = int(trainer.get("num_nodes", 1))
        self.num_processes = self.num_nodes * count_devices(
            trainer.get("devices", 1), str(trainer.get("accelerator", "auto"))
        )
        self._check_launch()

    def _check_launch(self) -> None:
        if self.group.size > 1 and self.num_processes != self.group.size:
            raise ConfigError(
                "the number of processes started is not the number asked for",
                where="trainer.devices x trainer.num_nodes",
                given=self.num_processes,
                expected=f"{self.group.size}, as started from outside",
            )
        if self.group.size == 1 and self.num_nodes > 1:
            raise ConfigError(
                "several machines cannot be reached from this process",
                where="trainer.num_nodes",
                given=self.num_nodes,
                fix="start this command on every machine with torchrun (or srun in a SLURM job)",
            )

    def run(self, chain: Sequence[Node]) -> list[Artifact]:
        """Reuse or build every stage of a chain, in its order, and return the artefacts.

        Raises UserError as the stage raised it, and WorkerFailed if a stage's processes ended for another reason.
        """
        artifacts: dict[str, Artifact] = {}
        checks = {node.name for node in chain if not is_reusable(node)}
        for node in chain:
            if checks.intersection(node.references):
                raise ConfigError(
                    "a stage that runs anew each time has nothing for others to read",
                    where=f"stages.{node.name}", given=", ".join(f"stage:{name}" for name in node.references),
                )  # fmt: skip
            if self.group.rank > 0 and node.name in checks:
                continue  # rank 0 runs it; no other rank can know its fingerprint, and none has to
            recipe = self.recipe(node, artifacts)
            settings = replace_references(node.settings, lambda name, sub: _place(artifacts[name], sub))
            artifacts[node.name] = self._build(node, recipe, settings)
        return list(artifacts.values())

    def recipe(self, node: Node, artifacts: Mapping[str, Artifact]) -> Recipe:
        """Fingerprint a stage whose inputs are there."""
        tokens = replace_references(
            input_tokens(node.settings, self.inputs),
            lambda name, sub: artifact_token(artifacts[name].fingerprint, sub),
        )
        inputs = {name: artifacts[name].fingerprint for name in node.references}
        return Recipe(node.name, digest(node.target, tokens, *determinants(node)), node.settings, inputs)

    def _build(self, node: Node, recipe: Recipe, settings: Mapping[str, Any]) -> Artifact:
        def call(out: Path, trainer: Mapping[str, Any]) -> StageCall:
            return StageCall(node.name, node.target, settings, str(out), {**self.runtime, "trainer": trainer})

        several = node.name in self.distributed and self.num_processes > 1
        trainer = self.runtime.get("trainer", {})
        if self.group.size == 1:
            if several:
                return self.store.build(recipe, lambda out: self._launch(call(out, trainer)))
            return self.store.build(recipe, lambda out: self.invoke(call(out, single_process(trainer))))
        if several:
            return self._build_together(recipe, lambda out: self.invoke(call(out, trainer)))
        if self.group.rank > 0:
            found = self.store.wait(recipe)
            assert found is not None
            return found
        with outside_group():
            return self.store.build(recipe, lambda out: self.invoke(call(out, single_process(trainer))))

    def _build_together(self, recipe: Recipe, make: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        """Build with all ranks of a group started from outside: rank 0 holds the lock, the others follow its sign."""
        sign = self.store.building(recipe) / ("." + re.sub(r"[^A-Za-z0-9.-]", "_", self.group.launch))

        def lead(out: Path) -> Mapping[str, Any]:
            sign.touch()
            try:
                return make(out)
            finally:
                sign.unlink(missing_ok=True)

        if self.group.rank == 0:
            return self.store.build(recipe, lead)
        found = self.store.wait(recipe, until=sign.exists)
        if found is None:
            make(sign.parent)
            found = self.store.wait(recipe)
            assert found is not None
        return found

    def _launch(self, call: StageCall) -> Mapping[str, Any]:
        folder = self.work / call.stage
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in (folder / SUMMARY_FILE, folder / ERROR_FILE, folder / STOPPED_FILE, *folder.glob(PID_FILES)):
            leftover.unlink(missing_ok=True)
        call.save(folder / CALL_FILE)
        log.info("%s: starting %d processes", call.stage, self.num_processes)
        arguments = [*WORKER, str(folder / CALL_FILE)]
        code = run_processes(
            arguments,
            num_processes=self.num_processes,
            log_file=folder / LOG_FILE,
            workers=lambda: [int(path.stem) for path in folder.glob(PID_FILES)],
        )
        if (folder / STOPPED_FILE).exists():
            log.warning("%s; the same command continues", (folder / STOPPED_FILE).read_text())
            raise SystemExit(EXIT_INTERRUPTED)
        if (folder / ERROR_FILE).exists():
            raise read_error(folder / ERROR_FILE)
        if code != 0 or not (folder / SUMMARY_FILE).exists():
            raise WorkerFailed(
                f"stage {call.stage} failed on its {self.num_processes} processes (exit code {code}); "
                f"what they printed is in {folder / LOG_FILE}"
            )
        return json.loads((folder / SUMMARY_FILE).read_text())


def _place(artifact: Artifact, sub: str) -> str:
    path = artifact.folder / sub if sub else artifact.folder
    if not path.exists():
        raise ConfigError(
            "a stage's artefact has no such part", where=artifact.folder, given=sub, expected="a file or folder in it"
        )
    return str(path)


def work_on(call_file: Path, invoke: Invoke, rank: int) -> int:
    """Be one process of a stage that `Runner` started: run the call, leave its summary or its error beside it."""
    folder = Path(call_file).parent
    (folder / f"{os.getpid()}.pid").touch()
    try:
        summary = invoke(StageCall.load(call_file))
    except UserError as error:
        # the first rank to get here tells; the others stop for the same reason
        if not (folder / ERROR_FILE).exists():
            write_error(folder / ERROR_FILE, error)
        return 2
    except Exception as error:
        if not was_interrupted(error):
            raise
        (folder / STOPPED_FILE).write_text(str(error))
        return 0
    if rank == 0:
        write_json(folder / SUMMARY_FILE, plain(summary))
    leave_group()
    return 0


def was_interrupted(error: Exception) -> bool:
    """Whether training stopped on a signal after saving, and so can be continued."""
    # Lightning takes seconds to import; where training ran it is there.
    checkpoints = sys.modules.get("mmrlhf.callbacks.checkpoints")
    return checkpoints is not None and isinstance(error, checkpoints.TrainingInterrupted)


def stopping_signal(error: Exception) -> signal.Signals | None:
    """The signal that an interrupted training names; None where it reached another rank only."""
    named = re.search(r"stopped by (SIG[A-Z0-9]+)", str(error))
    return signal.Signals[named[1]] if named else None


def write_error(path: Path, error: UserError) -> None:
    """Write a user's mistake so that another process can raise it again."""
    fields = ("problem", "where", "given", "expected", "fix")
    values = {name: None if getattr(error, name) is None else str(getattr(error, name)) for name in fields}
    write_json(path, {"kind": type(error).__name__, **values})


def read_error(path: Path) -> UserError:
    """Read a user's mistake that another process wrote."""
    content = json.loads(Path(path).read_text())
    kind = getattr(errors, content.pop("kind"), UserError)
    return kind(content.pop("problem"), **content)
