"""Runs a chain of stages: reuses what the store has, builds the rest, each training stage on its own processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrlhf.chain.artifact import Artifact, Recipe
from mmrlhf.chain.code import describe, split_closure
from mmrlhf.chain.fingerprint import artifact_token, digest, replace_texts, source_tokens
from mmrlhf.chain.launch import single_process
from mmrlhf.chain.order import (
    Node,
    check_promises,
    counted_settings,
    determinants,
    is_reusable,
    replace_references,
    version,
)
from mmrlhf.chain.store import CodePolicy, Store
from mmrlhf.chain.worker import Invoke, StageCall, launch, read_error, write_error
from mmrlhf.errors import ConfigError, UserError
from mmrlhf.processes import Group, TrainingInterrupted, count_devices, outside_group

log = logging.getLogger(__name__)

LOG_FILE = "processes.log"
Make = Callable[[Path], Mapping[str, Any]]


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
        code: what happens where only the code of this package is another than an artefact's (`Store.choose`).
        callbacks: settings of the callbacks that change what training stages make.
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
        code: CodePolicy = "warn",
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.store, self.invoke, self.runtime = store, invoke, dict(runtime)
        self.inputs, self.distributed, self.work = frozenset(inputs), frozenset(distributed), Path(work)
        self.code: CodePolicy = code
        self.callbacks = list(callbacks)
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

        Raises UserError as the stage raised it, WorkerFailed if a stage's processes ended for another reason, and
        TrainingInterrupted if they stopped on a signal.
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
            recipe, differs = self.store.choose(self.recipe(node, artifacts), self.code)
            self._tell(node, differs)
            settings = replace_references(node.settings, lambda name, sub: _place(artifacts[name], sub))
            if self.group.rank == 0:
                self.store.note_use(recipe, self.work)  # before: what this run leaves unfinished is its own, too
            artifacts[node.name] = self._build(node, recipe, settings)
            if self.group.rank == 0:
                self.store.note_use(recipe, self.work)
        return list(artifacts.values())

    def recipe(self, node: Node, artifacts: Mapping[str, Artifact]) -> Recipe:
        """Fingerprint a stage whose inputs are there."""
        counted = counted_settings(node)
        sources = source_tokens(counted, self.inputs)
        tokens = replace_references(
            replace_texts(counted, sources), lambda name, sub: artifact_token(artifacts[name].fingerprint, sub)
        )
        inputs = {name: artifacts[name].fingerprint for name in node.references}
        callbacks = self.callbacks if "training" in node.settings else []
        package, own = split_closure(node.target, [node.settings, callbacks])
        number = version(node)
        fingerprint = digest(node.target, tokens, number, own, callbacks, *determinants(node))
        said = {"_target_": node.target, **counted, **({"callbacks": callbacks} if callbacks else {})}
        return Recipe(node.name, fingerprint, said, inputs, sources, number, own, package)

    def _tell(self, node: Node, differs: list[str]) -> None:
        if not differs or self.code == "ignore" or self.group.rank > 0:
            return
        if self.code == "rebuild":
            log.info("%s: is built anew, because its code has changed: %s", node.name, describe(differs))
        else:
            log.warning(
                "%s: reused although its code has changed since: %s (code=rebuild builds it anew)",
                node.name, describe(differs),
            )  # fmt: skip

    def _build(self, node: Node, recipe: Recipe, settings: Mapping[str, Any]) -> Artifact:
        def call(out: Path, trainer: Mapping[str, Any]) -> StageCall:
            return StageCall(node.name, node.target, settings, str(out), {**self.runtime, "trainer": trainer})

        several = node.name in self.distributed and self.num_processes > 1
        trainer = self.runtime.get("trainer", {})

        def checked(make: Callable[[StageCall], Mapping[str, Any]], trainer: Mapping[str, Any]) -> Make:
            def fill(out: Path) -> Mapping[str, Any]:
                summary = make(call(out, trainer))
                if self.group.rank == 0:
                    check_promises(node, out)
                return summary

            return fill

        alone = checked(self.invoke, single_process(trainer))
        if self.group.size == 1:
            if several:
                return self.store.build(recipe, checked(lambda call: self._launch(call, recipe), trainer), self.code)
            return self.store.build(recipe, alone, self.code)
        with self._telling(recipe):
            if several:
                return self._build_together(recipe, checked(self.invoke, trainer))
            if self.group.rank > 0:
                return self._wait(recipe)
            with outside_group():
                return self.store.build(recipe, alone, self.code)

    @contextmanager
    def _telling(self, recipe: Recipe) -> Iterator[None]:
        """Let rank 0 say why it fails, where the other ranks would wait for ever for what it does not make."""
        try:
            yield
        except TrainingInterrupted:
            raise  # all ranks have agreed on it
        except Exception as error:
            if self.group.rank == 0 and self.group.outlives_failures:
                mistake = UserError("another process of this run has failed", where="rank 0",
                                    given=f"{type(error).__name__}: {error}")  # fmt: skip
                failure = self._failure(recipe)
                failure.parent.mkdir(parents=True, exist_ok=True)
                write_error(failure, error if isinstance(error, UserError) else mistake)
            raise

    def _failure(self, recipe: Recipe) -> Path:
        return self.store.processes(recipe) / f"{self.group.sign}.json"

    def _wait(self, recipe: Recipe) -> Artifact:
        """Wait for what rank 0 makes; raises what it has failed with."""
        failure = self._failure(recipe)
        found = self.store.wait(recipe, until=failure.is_file)
        if found is None:
            raise read_error(failure)
        return found

    def _build_together(self, recipe: Recipe, make: Make) -> Artifact:
        """Build with all ranks of a group started from outside: rank 0 holds the lock, the others follow its sign."""
        sign, failure = self.store.building(recipe) / f".{self.group.sign}", self._failure(recipe)

        def lead(out: Path) -> Mapping[str, Any]:
            sign.touch()
            try:
                return make(out)
            finally:
                sign.unlink(missing_ok=True)

        if self.group.rank == 0:
            return self.store.build(recipe, lead, self.code)
        found = self.store.wait(recipe, until=lambda: sign.exists() or failure.is_file())
        if found is None and not failure.is_file():
            make(sign.parent)
        return found or self._wait(recipe)

    def _launch(self, call: StageCall, recipe: Recipe) -> Mapping[str, Any]:
        log_file = self.work / call.stage / LOG_FILE
        exchange = self.store.processes(recipe)
        return launch(call, exchange, num_processes=self.num_processes, log_file=log_file)


def _place(artifact: Artifact, sub: str) -> str:
    path = artifact.folder / sub if sub else artifact.folder
    if not path.exists():
        raise ConfigError(
            "a stage's artefact has no such part", where=artifact.folder, given=sub, expected="a file or folder in it"
        )
    return str(path)
