"""MMPR (arXiv 2411.10442, OpenGVLab): files of pairs, and `meta.json`, which says where the pictures of each lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.records.descriptions import is_described, read_description
from mmrlhf.records.draft import Drafts
from mmrlhf.records.json_text import Row
from mmrlhf.records.layouts.published_pairs import internvl
from mmrlhf.records.ranked_rows import GroupBy, import_grouped
from mmrlhf.records.sources import OnBadLine, RowSource, file_source, joined

log = logging.getLogger(__name__)

META = "meta.json"
LAYOUT = 'a folder with meta.json, {NAME: {"root": FOLDER, "annotation": FILE, ...}}, and what it names'


@dataclass(frozen=True)
class _Part:
    """One file of pairs, and the folder that its media paths are relative to; both below the data folder."""

    file: PurePosixPath
    media: PurePosixPath


def import_mmpr(
    root: Path | str,
    *,
    file: str | None = None,
    media_folder: str = "",
    group_by: GroupBy = "query",
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read all files of pairs that meta.json names; files beside these, which it does not name, are read, too.

    Paths in meta.json begin with the data set's own folder (`MMPR/images`): data.root is that folder, or the one above.

    Args:
        root: the folder with meta.json.
        file: only the annotations whose file name matches this pattern; by default all.
        media_folder: folder below root that the paths of pictures begin in; by default what meta.json says.
        group_by, on_bad_line, media, source, licence: as in `import_grouped`.

    Raises:
        DataError: no meta.json, one of another structure, an annotation that does not exist.
    """
    root = Path(root)
    parts = [part for part in _parts(root) if not file or part.file.match(file)]
    if not parts:
        raise DataError("no file of meta.json has this name", where=root / META, given=file, expected=LAYOUT)
    sources = [_source(root, part, media_folder) for part in parts]
    return import_grouped(
        joined(sources, root, f"{len(parts)} files of {META}").converted(internvl),
        group_by=group_by, on_bad_line=on_bad_line, media=media, source=source, licence=licence, layout=LAYOUT,
    )  # fmt: skip


def is_mmpr(root: Path) -> bool:
    """Say whether a folder has a meta.json of this kind."""
    return is_described(root / META, _entries)


def _parts(root: Path) -> Iterator[_Part]:
    entries = _entries(root)
    named, media = set(), []
    for name, entry in entries.items():
        annotation = _below(root, entry["annotation"], f"{META}: {name}")
        named.add(annotation)
        media.append(PurePosixPath(_below(root, entry["root"], f"{META}: {name}")))
        if entry.get("repeat_time", 1) != 1:
            log.warning(
                "%s wants %s %s times an epoch; a query is packed once, data.mixing.weights says how often it is seen",
                META, name, entry["repeat_time"],
            )  # fmt: skip
        yield _Part(annotation, media[-1])
    shared = _common(media)
    for folder in {part.parent for part in named}:
        for path in sorted((root / folder).glob("*.jsonl")):
            other = PurePosixPath(path.relative_to(root).as_posix())
            if other not in named:
                log.warning("%s does not name %s; its pictures are looked for in %s", META, other, shared)
                yield _Part(other, shared)


def _entries(root: Path) -> dict[str, Mapping[str, Any]]:
    entries = read_description(root / META, "list of files", LAYOUT)
    fits = entries and all(
        isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("root", "annotation"))
        for entry in entries.values()
    )  # fmt: skip
    if not fits:
        raise DataError("list of files has another structure", where=root / META, expected=LAYOUT)
    return entries


def _below(root: Path, path: str, where: str) -> PurePosixPath:
    """The path as it lies below root: as it is written, or without the data set's own folder in front."""
    written = PurePosixPath(path)
    for steps in (written, PurePosixPath(*written.parts[1:])):
        if steps.parts and not steps.is_absolute() and ".." not in steps.parts and os.path.exists(root / steps):
            return steps
    raise DataError(
        "meta.json names what does not exist", where=f"{root}: {where}", given=path,
        expected="a path below the data folder, or below the one above it",
    )  # fmt: skip


def _common(paths: list[PurePosixPath]) -> PurePosixPath:
    """The deepest folder that all paths lie in."""
    parts = [path.parts for path in paths]
    depth = next(
        (n for n, steps in enumerate(zip(*parts, strict=False)) if len(set(steps)) > 1), min(map(len, parts), default=0)
    )
    return PurePosixPath(*parts[0][:depth]) if parts else PurePosixPath()


def _source(root: Path, part: _Part, media_folder: str) -> RowSource:
    folder = PurePosixPath(media_folder) if media_folder else part.media

    def place(row: Row, where: str) -> Row:
        return {name: _in(folder, value) if name in ("image", "video") else value for name, value in row.items()}

    return file_source(root / part.file, root, name=str(part.file)).converted(place)


def _in(folder: PurePosixPath, value: Any) -> Any:
    if isinstance(value, list):
        return [_in(folder, item) for item in value]
    return str(folder / value) if isinstance(value, str) and value else value
