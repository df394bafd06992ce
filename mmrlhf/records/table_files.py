"""Which files of a data folder are its tables: by name, by pattern, or the only kind there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.saved_folders import saved_tables
from mmrlhf.records.sources import RowSource, files_source

TABLES = (".jsonl", ".json", ".parquet")
_MOST_SHOWN = 12
_PACKED = (".gz", ".zip", ".tar", ".tgz", ".zst", ".xz", ".bz2", ".7z", ".rar")


def tables_source(root: Path | str, file: str | None, media_folder: str, layout: str) -> RowSource:
    """Read the tables that `find_tables` finds as one.

    Args:
        root: folder with the tables, or one table.
        file: name or pattern of the tables below root.
        media_folder: folder below root that media paths are relative to.
        layout: what is expected, for errors.
    """
    root = Path(root)
    folder = root if root.is_dir() else root.parent
    return replace(files_source(find_tables(root, file, layout), folder), root=folder / media_folder)


def find_file(root: Path, file: str | None, known: tuple[str, ...], layout: str) -> Path:
    """Return the file to import: the given one, else the first known name that exists below root.

    Raises:
        DataError: no such folder or file, with what was found there and what the layout looks like.
    """
    _require_folder(root, layout)
    wanted = (file,) if file else known
    for name in wanted:
        if (root / name).is_file():
            return root / name
    raise _no_file(root, " or ".join(wanted), layout, ", or let data=auto say which layout the folder has")


def find_tables(root: Path, file: str | None, layout: str) -> list[Path]:
    """Return the tables to import, by name: those that match the pattern `file`, else the only kind there is.

    Without a pattern, all Parquet files below the root count (or the root itself, if it is a file), else the Arrow
    files of a folder that `datasets` saved, else the one `.jsonl` or `.json` file in it; several of those are no choice
    that a program should make.

    Raises:
        DataError: no such folder, nothing found, or several files of rows, or parts of a saved data set.
    """
    if root.is_file():
        return [root]
    _require_folder(root, layout)
    found = _match(root, file or "**/*.parquet")
    found = [path for path in found if path.is_file()] or (saved_tables(root) if file is None else [])
    if not file and not found:
        found = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLES and path.is_file())
        if len(found) > 1:
            raise DataError(
                "data folder has several files of records",
                where=root,
                given=", ".join(path.name for path in found[:_MOST_SHOWN]),
                fix="name one, or a pattern: importer.file=NAME",
            )
    if not found:
        raise _no_file(root, file or "*.parquet, *.jsonl or *.json", layout)
    return found


def _match(root: Path, pattern: str) -> list[Path]:
    problem: ValueError | None = None
    if not Path(pattern).is_absolute():
        try:
            return sorted(root.glob(pattern))
        except ValueError as error:
            problem = error
    raise ConfigError(
        "importer.file is no pattern below the data folder", given=pattern, expected='e.g. "data/train-*.parquet"'
    ) from problem


def _require_folder(root: Path, layout: str) -> None:
    if not root.is_dir():
        raise DataError(
            "data folder does not exist",
            where=root, expected=layout, fix="give the folder that holds the records and the media folders",
        )  # fmt: skip


def _no_file(root: Path, wanted: str, layout: str, instead: str = "") -> DataError:
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    shown = ", ".join(names[:_MOST_SHOWN]) + (f" and {len(names) - _MOST_SHOWN} more" if names[_MOST_SHOWN:] else "")
    packed = [name for name in names if name.endswith(_PACKED)]
    return DataError(
        f"data folder has no {wanted}",
        where=root,
        given=shown or "an empty folder",
        expected=layout,
        fix=f"unpack {packed[0]} first" if packed
        else f"give the folder one level up or down, or name the file: importer.file=NAME{instead}",
    )  # fmt: skip
