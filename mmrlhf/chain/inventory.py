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
from typing import Any

from filelock import FileLock, Timeout

from mmrlhf.chain.fingerprint import ARTIFACT_FILE, FINGERPRINT_DIGITS
from mmrlhf.chain.store import BUILDING, LOCK, PROCESSES, USED
from mmrlhf.files import expanded

LINKS = "artifacts"  # of a run's folder
_DAY = 24 * 3600.0
_NAME = re.compile(rf"([0-9a-f]{{{FINGERPRINT_DIGITS}}})({re.escape(BUILDING)}|{re.escape(PROCESSES)})?")
_ARTIFACT_TOKEN = re.compile(r"artifact:([0-9a-f]{64})")


@dataclass(frozen=True)
class Holding:
    """One folder of a store.

    finished: whether it is an artefact; bytes: of its files; age: seconds since its last use, or since anything was
    written to it; runs: kept runs that refer to it; kept: whether one of these, or an artefact of theirs, needs it;
    locked: whether a process is building it.
    """

    stage: str
    fingerprint: str
    folder: Path
    finished: bool
    bytes: int
    age: float
    runs: tuple[str, ...]
    kept: bool
    locked: bool

    @property
    def removable(self) -> bool:
        """Whether pruning takes it: an artefact that nothing refers to, or what a day has not continued."""
        return not self.locked and (not self.kept if self.finished else self.age > _DAY)


def take_stock(root: Path, outputs: Iterable[Path]) -> list[Holding]:
    """List a store's folders, by stage and name.

    Args:
        root: the store.
        outputs: folders with runs' folders in them, at any depth; the runs that a store remembers count as well.
    """
    root = expanded(root).resolve()
    folders = [folder for folder in sorted(root.glob("*/*")) if folder.is_dir() and _NAME.fullmatch(folder.name)]
    runs = {folder: sorted(found) for folder, found in _references(root, outputs).items()}
    kept = _needed({folder for folder in folders if folder in runs}, root)
    return [_holding(folder, tuple(runs.get(folder, ())), folder in kept) for folder in folders]


def _holding(folder: Path, runs: tuple[str, ...], kept: bool) -> Holding:
    sizes_and_times = [(stat.st_size, stat.st_mtime) for stat in _stats(folder)]
    finished = _NAME.fullmatch(folder.name) is not None and "." not in folder.name
    stamp = folder.with_name(folder.name + USED)
    newest = max([time_ for _, time_ in sizes_and_times], default=folder.stat().st_mtime)
    used = stamp.stat().st_mtime if finished and stamp.exists() else newest
    name = folder.name[:FINGERPRINT_DIGITS]
    return Holding(
        folder.parent.name, name, folder, finished, sum(size for size, _ in sizes_and_times),
        max(0.0, time.time() - used), runs, kept, _is_locked(folder.with_name(name + LOCK)),
    )  # fmt: skip


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
        kept = {line for line in stamp.read_text(encoding="utf-8").split("\n") if line and Path(line).is_dir()}
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
    """Artefacts that are referred to, with all that these were made from."""
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
    try:
        content = json.loads((folder / ARTIFACT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
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


def remove(holdings: Sequence[Holding]) -> list[Holding]:
    """Remove folders of a store, each under its lock; returns those that are gone, without any being built now."""
    gone = []
    for holding in holdings:
        name = holding.folder.with_name(holding.fingerprint)
        try:
            with FileLock(f"{name}{LOCK}").acquire(timeout=0):
                away = holding.folder.with_name(f".{holding.folder.name}.{secrets.token_hex(8)}.part")
                os.rename(holding.folder, away)  # at once, so that nobody finds half of it
                shutil.rmtree(away)
                if holding.finished:
                    Path(f"{name}{USED}").unlink(missing_ok=True)
                gone.append(holding)
        except (Timeout, FileNotFoundError):
            continue  # it is being built, or gone already
    return gone
