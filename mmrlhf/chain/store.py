"""The store of artefacts: one folder per stage and fingerprint, built once, shared by every run.

    <root>/<stage>/<first 12 digits>/           finished, read-only by convention, with `artifact.json`
    <root>/<stage>/<first 12 digits>.building/  under work, or left by a crash and continued by the next run
    <root>/<stage>/<first 12 digits>.processes/ what the processes of one stage exchange while they run
    <root>/<stage>/<first 12 digits>.lock       held by the process that builds
    <root>/<stage>/<first 12 digits>.used       folders of the runs that used it; its time is the last use

A folder becomes an artefact by rename, never half-written. While it is under work, `.begun.json` says which code and
settings began it, so that whoever continues it knows.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from mmrlhf.chain.artifact import BEGUN_FILE, Artifact, Recipe, begun_by, read_artifact
from mmrlhf.chain.code import changed, describe, joined
from mmrlhf.chain.fingerprint import FINGERPRINT_DIGITS, digest
from mmrlhf.errors import DataError
from mmrlhf.files import expanded, hide_credentials, publish_folder, write_json
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.terminal.lines import duration
from mmrlhf.trees import plain

log = logging.getLogger(__name__)

CodePolicy = Literal["rebuild", "warn", "ignore"]
# a folder of a stage's that only its continuation needs (a trainer's checkpoints): it goes once the stage is finished
SCRATCH = "checkpoints"
# what lies beside an artefact under its name: unfinished, exchanged between processes, held, used by which runs
BUILDING, PROCESSES, LOCK, USED = ".building", ".processes", ".lock", ".used"


class Store:
    """Finds artefacts by fingerprint and builds those that are missing, one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = expanded(root).resolve()

    def folder(self, made: Recipe | Artifact) -> Path:
        """Where the artefact lies, or will lie."""
        return self.root / made.stage / made.fingerprint[:FINGERPRINT_DIGITS]

    def building(self, recipe: Recipe) -> Path:
        """Where the artefact is filled before it is finished; kept after a crash."""
        final = self.folder(recipe)
        return final.with_name(final.name + BUILDING)

    def processes(self, recipe: Recipe) -> Path:
        """Where the processes that fill an artefact together exchange their call and their results."""
        final = self.folder(recipe)
        return final.with_name(final.name + PROCESSES)

    def find(self, recipe: Recipe) -> Artifact | None:
        """Look for a finished artefact.

        Raises DataError if the folder holds another fingerprint or its `artifact.json` is damaged.
        """
        record = self.folder(recipe) / ARTIFACT_FILE
        if not record.is_file():
            return None
        found = read_artifact(record)
        if found.fingerprint != recipe.fingerprint:
            raise DataError(
                "an artefact's folder holds another artefact",
                where=record,
                given=found.fingerprint,
                expected=recipe.fingerprint,
                fix="delete its folder",
            )
        return found

    def choose(self, recipe: Recipe, code: CodePolicy) -> tuple[Recipe, list[str]]:
        """Which artefact is meant, among those that differ in the code of this package alone; and what changed.

        The one of exactly this code, where there is one. Else the one that was built last: reused under `warn` and
        `ignore`, and with `rebuild` left beside a new one. Returns the modules that differ from it, none where that is
        no matter.
        """
        exact = recipe.with_code()
        if self.find(exact) is not None:
            return exact, []
        first = self.find(recipe)
        if first is not None and not changed(first.package_code, recipe.package_code):
            return recipe, []
        last = self._last_built(recipe)
        if last is None:
            return recipe, []
        differs = changed(last.package_code, recipe.package_code)
        return (exact if code == "rebuild" else replace(recipe, fingerprint=last.fingerprint)), differs

    def _last_built(self, recipe: Recipe) -> Artifact | None:
        """The newest artefact of a recipe, by whatever code of this package; None where there is none."""
        records = [(path.stat().st_mtime_ns, path) for path in (self.root / recipe.stage).glob(f"*/{ARTIFACT_FILE}")]
        for _, record in sorted(records, reverse=True):
            with suppress(DataError):  # `find` says what is damaged, where it is needed
                found = read_artifact(record)
                if found.fingerprint in (recipe.fingerprint, digest(recipe.fingerprint, found.package_code)):
                    return found
        return None

    def build(self, recipe: Recipe, make: Callable[[Path], Mapping[str, Any]], code: CodePolicy = "warn") -> Artifact:
        """Return the artefact, after `make(folder)` has filled its folder if it was missing.

        Another process that builds the same artefact is waited for. If `make` raises, the folder stays and the next
        build gets it again, so that a stage continues from what it finds there; under `rebuild` it is emptied first
        where other code of this package has begun it.
        """
        found = self.find(recipe)
        if found is None:
            with self._lock(recipe):
                found = self.find(recipe) or self._make(recipe, make, code)
        if found.reused:
            log.info("%s: reused %s", recipe.stage, found.folder)
        return found

    def wait(self, recipe: Recipe, *, until: Callable[[], bool] = lambda: False, poll: float = 0.2) -> Artifact | None:
        """Wait until another process has finished the artefact (returned) or `until()` is true (None)."""
        while True:
            found = self.find(recipe)
            if found is not None:
                return found
            if until():
                return None
            time.sleep(poll)

    def _make(self, recipe: Recipe, make: Callable[[Path], Mapping[str, Any]], code: CodePolicy) -> Artifact:
        building, final = self.building(recipe), self.folder(recipe)
        recipe = self._begin(recipe, code)
        start = time.monotonic()
        summary = plain(make(building))
        seconds = round(time.monotonic() - start, 3)
        write_json(
            building / ARTIFACT_FILE, {**recipe.record(), "seconds": seconds, "summary": hide_credentials(summary)}
        )
        (building / BEGUN_FILE).unlink(missing_ok=True)
        if final.exists():
            log.warning("%s: %s has no record of what made it and is replaced", recipe.stage, final)
        publish_folder(building, final)
        # not before: a stage that is stopped in its last moment goes on from it
        shutil.rmtree(final / SCRATCH, ignore_errors=True)
        log.info("%s: built in %s", recipe.stage, duration(seconds))
        return Artifact(recipe.stage, recipe.fingerprint, final, seconds, summary, False, recipe.package_code)

    def begun_by_other_code(self, recipe: Recipe) -> list[str]:
        """Modules that have changed since an unfinished folder was begun; all, where it does not say by what."""
        building = self.building(recipe)
        return changed(begun_by(building), recipe.package_code) if building.exists() else []

    def _begin(self, recipe: Recipe, code: CodePolicy) -> Recipe:
        """Make the folder, or go on in the one that is there; the recipe with the code of all who filled it."""
        building = self.building(recipe)
        if building.exists():
            differs = self.begun_by_other_code(recipe)
            if differs and code == "rebuild":
                log.info("%s: starts anew, because its code has changed: %s", recipe.stage, describe(differs))
                shutil.rmtree(building)
            else:
                log.info("%s: continuing in %s", recipe.stage, building)
                if differs and code == "warn":
                    log.warning(
                        "%s: goes on with what other code has begun: %s (code=rebuild starts it anew)",
                        recipe.stage, describe(differs),
                    )  # fmt: skip
                recipe = replace(recipe, package_code=joined(begun_by(building), recipe.package_code))
        if not building.exists():
            building.mkdir(parents=True)
            log.info("%s: building %s", recipe.stage, self.folder(recipe))
        write_json(building / BEGUN_FILE, recipe.record())
        return recipe

    def note_use(self, made: Recipe | Artifact, run: Path) -> None:
        """Keep in mind when an artefact was used or begun last, and by which run's folder (`<12 digits>.used`)."""
        folder = self.folder(made)
        stamp = folder.with_name(folder.name + USED)
        line = str(Path(run).absolute())
        with suppress(OSError):  # a store of someone else's may be read-only
            stamp.parent.mkdir(parents=True, exist_ok=True)
            with stamp.open("a", encoding="utf-8", errors="surrogateescape") as file:
                if line not in noted_runs(stamp):
                    file.write(f"{line}\n")
                os.utime(stamp)

    @contextmanager
    def _lock(self, recipe: Recipe) -> Iterator[None]:
        final = self.folder(recipe)
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.with_name(final.name + LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: another run is building %s, waiting for it", recipe.stage, final)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def final_place(path: Path) -> Path:
    """Where a file of an artefact under work lies once that is finished; any other path is returned as it is."""
    under_work = re.compile(rf"([0-9a-f]{{{FINGERPRINT_DIGITS}}}){re.escape(BUILDING)}")
    return Path(*(under_work.sub(r"\1", part) if under_work.fullmatch(part) else part for part in path.parts))


def noted_runs(stamp: Path) -> list[str]:
    """Folders of the runs that `Store.note_use` has noted; a folder's name may be no text."""
    return [line for line in stamp.read_text(encoding="utf-8", errors="surrogateescape").split("\n") if line]
