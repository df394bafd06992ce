"""What a store holds, which runs refer to it, and taking away what none does."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from mmrlhf.chain.artifact import BEGUN_FILE
from mmrlhf.chain.fingerprint import FINGERPRINT_DIGITS
from mmrlhf.chain.store import BUILDING, LOCK, PROCESSES, USED, noted_runs
from mmrlhf.files import expanded
from mmrlhf.parts import ARTIFACT_FILE

LINKS = "artifacts"  # of a run's folder
_DAY = 24 * 3600.0
# NAME, NAME.building, NAME.processes; .NAME.<random>.part was replaced or removed, and is there after a crash only
_NAME = re.compile(
    rf"(?P<hidden>\.)?(?P<name>[0-9a-f]{{{FINGERPRINT_DIGITS}}})"
    rf"(?P<suffix>{re.escape(BUILDING)}|{re.escape(PROCESSES)})?"
    r"(?(hidden)\.[0-9a-f]{16}\.part)"
)
Kind = Literal["finished", "unfinished", "exchange", "leftover", "other"]
_ARTIFACT_TOKEN = re.compile(r"artifact:([0-9a-f]{64})")


@dataclass(frozen=True)
class Holding:
    """One folder of a store.

    kind: `finished` is an artefact; `unfinished` goes on in the next run; `exchange` is of the processes of one stage;
    `leftover` of a removal that was stopped; `other` nothing of the chain's, as features of pictures. bytes: of its
    files; used: when it was used last, or anything was written to it, in seconds since 1970; runs: kept runs that refer
    to it; kept: whether one of these, or an artefact of theirs, needs it; locked: whether a process is building it.
    """

    stage: str
    fingerprint: str
    folder: Path
    kind: Kind
    bytes: int
    used: float
    runs: tuple[str, ...]
    kept: bool
    locked: bool

    @property
    def age(self) -> float:
        """Seconds since its last use."""
        return max(0.0, time.time() - self.used)

    @property
    def removable(self) -> bool:
        """Whether pruning takes it: what no kept run refers to, and what is unfinished only after a day."""
        if self.locked or self.kept or self.kind == "other":
            return False
        return self.kind in ("finished", "leftover") or self.age > _DAY


def take_stock(root: Path, outputs: Iterable[Path]) -> list[Holding]:
    """List a store's folders, by stage and name.

    Args:
        root: the store.
        outputs: folders with runs' folders in them, at any depth; the runs that a store remembers count as well.
    """
    root = expanded(root).resolve()
    folders = [folder for folder in sorted(root.glob("*/*")) if folder.is_dir()]
    runs = {folder: sorted(found) for folder, found in _references(root, outputs).items()}
    runs |= {folder.with_name(folder.name + BUILDING): found for folder, found in runs.items()}
    kept = _needed({folder for folder in folders if folder in runs}, root)
    return [_holding(folder, tuple(runs.get(folder, ())), folder in kept) for folder in folders]


def _holding(folder: Path, runs: tuple[str, ...], kept: bool) -> Holding:
    sizes_and_times = [(stat.st_size, stat.st_mtime) for stat in _stats(folder)]
    written = max([time_ for _, time_ in sizes_and_times], default=folder.stat().st_mtime)
    match = _NAME.fullmatch(folder.name)
    name = match["name"] if match is not None else folder.name
    kind = _kind(match)
    noted = _last_use(folder.with_name(name))
    used = noted or written if kind == "finished" else max(noted, written)
    return Holding(
        folder.parent.name, name, folder, kind, sum(size for size, _ in sizes_and_times), used, runs, kept,
        match is not None and _is_locked(folder.with_name(name + LOCK)),
    )  # fmt: skip


def _kind(match: re.Match[str] | None) -> Kind:
    if match is None:
        return "other"
    if match["hidden"]:
        return "leftover"
    return {None: "finished", BUILDING: "unfinished", PROCESSES: "exchange"}[match["suffix"]]  # type: ignore[return-value]


def _last_use(folder: Path) -> float:
    """When a run noted its use of an artefact, finished or begun; 0 where none has."""
    stamp = folder.with_name(folder.name + USED)
    return stamp.stat().st_mtime if stamp.exists() else 0.0


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(place, name))
            except FileNotFoundError:
                continue  # a stage at work


def _references(root: Path, outputs: Iterable[Path]) -> dict[Path, set[str]]:
    """Artefact's folder -> kept runs: by their links, and by what the store remembers of runs whose folder is there."""
    found: dict[Path, set[str]] = {}
    for run, link in (pair for place in outputs for pair in _links(place)):
        found.setdefault(link, set()).add(str(run))
    for stamp in root.glob(f"*/*{USED}"):
        artifact = stamp.with_name(stamp.name.removesuffix(USED))
        kept = {run for run in noted_runs(stamp) if Path(run).is_dir()}
        found.setdefault(artifact, set()).update(kept)
    return {folder: runs for folder, runs in found.items() if runs}


def _links(place: Path) -> Iterator[tuple[Path, Path]]:
    """(run's folder, artefact's folder) of every run below a place."""
    for folder, names, _ in os.walk(place):
        if LINKS not in names:
            continue
        run = Path(folder).absolute()
        for link in (run / LINKS).iterdir():
            if link.is_symlink():
                yield run, link.resolve()
            elif link.suffix == ".txt":  # where a file system has no links
                yield run, Path(link.read_text(encoding="utf-8").strip()).resolve()


def _needed(folders: Iterable[Path], root: Path) -> set[Path]:
    """Folders that are referred to, finished or not, with all that these were made from."""
    by_fingerprint = {path.parent.name: path.parent for path in root.glob(f"*/*/{ARTIFACT_FILE}")}
    found: set[Path] = set()
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        if folder in found:
            continue
        found.add(folder)
        record = _record(folder)
        tokens = _ARTIFACT_TOKEN.findall(json.dumps(record.get("sources", {})))
        made_from = [*dict(record.get("inputs", {})).values(), *tokens]
        names = (str(fingerprint)[:FINGERPRINT_DIGITS] for fingerprint in made_from)
        waiting += [by_fingerprint[name] for name in names if name in by_fingerprint]
    return found


def _record(folder: Path) -> Mapping[str, Any]:
    name = ARTIFACT_FILE if (folder / ARTIFACT_FILE).exists() else BEGUN_FILE
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_locked(lock_file: Path) -> bool:
    if not lock_file.exists():
        return False
    try:
        with FileLock(lock_file).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # of someone else's store; removing says that it is closed
        return False


def remove(holdings: Sequence[Holding]) -> list[Holding]:
    """Remove folders of a store, each under its lock; returns those that are gone.

    What is being built stays, and so does what a run has used, or begun, since stock was taken.
    """
    gone = []
    for holding in holdings:
        name = holding.folder.with_name(holding.fingerprint)
        try:
            with FileLock(f"{name}{LOCK}").acquire(timeout=0):
                if _last_use(name) <= holding.used:
                    _remove(holding.folder)
                    gone.append(holding)
                    if not name.exists() and not name.with_name(name.name + BUILDING).exists():
                        Path(f"{name}{USED}").unlink(missing_ok=True)
        except (Timeout, FileNotFoundError):
            continue  # it is being built, or gone already
    return gone


def _remove(folder: Path) -> None:
    away = folder
    if not folder.name.endswith(".part"):
        away = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
        os.rename(folder, away)  # at once, so that nobody finds half of it
    shutil.rmtree(away)
