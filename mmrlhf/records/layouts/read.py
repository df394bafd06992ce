"""Rows of a published layout to drafts: by its name, or by what the first row has (`auto`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.draft import Draft, Drafts, Rejection
from mmrlhf.records.layouts.known_layouts import LAYOUTS, Layout, known_by
from mmrlhf.records.layouts.llama_factory import INFO, import_llama_factory, is_llama_factory
from mmrlhf.records.layouts.mmpr import META, import_mmpr, is_mmpr
from mmrlhf.records.mm_rlhf import FILES, import_released
from mmrlhf.records.ranked_rows import GroupBy, NothingFitsError, import_grouped, import_ranked
from mmrlhf.records.sources import OnBadLine, RowSource
from mmrlhf.records.table_files import tables_source

log = logging.getLogger(__name__)

AUTO = "auto"


def import_layout(
    root: Path | str,
    *,
    layout: str = AUTO,
    file: str | None = None,
    media_folder: str = "",
    dataset: str | None = None,
    group_by: GroupBy | None = None,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read a data set in a published layout.

    Args:
        root: folder with the tables, or one table.
        layout: its name (`known_layouts.LAYOUTS`); "auto" knows it by files or fields, and says so.
        file: name or pattern of the tables below root; by default all Parquet files, else those of a folder that
            `datasets` saved, else the only jsonl or json file.
        media_folder: folder below root that media paths are relative to; by default root, or the folder that the layout
            is published with, if it is there and the first row's paths do not name it themselves.
        dataset: which data set of LLaMA-Factory's dataset_info.json is meant.
        group_by: "query" puts rows with the same prompt and media together, "id" only those that also share an id; by
            default as the layout says.
        on_bad_line, media, source, licence: as in `import_ranked`.

    Raises:
        ConfigError: no layout of this name, or a data set is named where no dataset_info.json is read.
        DataError: no such folder or file, a first row that no layout knows; while drafts are taken, bad rows (unless
            rejected), or none that fits, with the layout that would.
    """
    root = Path(root)
    options: dict[str, Any] = {"on_bad_line": on_bad_line, "media": media, "source": source, "licence": licence}
    whole = _by_files(root, layout, file)
    if dataset and whole is not import_llama_factory:
        raise ConfigError(
            "importer.dataset names a data set where none is described", where=root, given=dataset,
            expected=f"a folder with LLaMA-Factory's {INFO}",
            fix="leave it out, or give that folder: data.root=DIR data=llama_factory",
        )  # fmt: skip
    if whole is not None:
        more = {"dataset": dataset} if whole is import_llama_factory else {}
        more |= {} if whole is import_released else {"group_by": group_by or "query"}
        drafts = whole(root, file=file, media_folder=media_folder, **options, **more)
        return Drafts(_suggesting(drafts, {}, None), drafts.__length_hint__())
    rows = tables_source(root, file, media_folder, "tables of rows")
    first, rows = rows.begun()
    chosen = _layout(_by_fields(first, rows) if layout == AUTO else layout)
    if not media_folder:
        rows = _beside(rows, first, chosen.media_folder)
    converted = rows.converted(chosen.convert)
    how = group_by or chosen.group_by
    if how is None:
        drafts = import_ranked(converted, **options)
    else:
        drafts = import_grouped(converted, group_by=how, layout=", ".join(chosen.fields), **options)
    return Drafts(_suggesting(drafts, first, chosen), drafts.__length_hint__())


def _beside(rows: RowSource, first: Mapping[str, Any], folder: str) -> RowSource:
    """The rows with their media in the folder that a layout is published with, where it is there and not named."""
    named = any(folder in PurePosixPath(value).parts for value in first.values() if isinstance(value, str))
    if not folder or named or not (rows.root / folder).is_dir():
        return rows
    log.info("media are looked for in %s, as this layout is published", rows.root / folder)
    return replace(rows, root=rows.root / folder)


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ConfigError("no layout of this name", given=name, expected=f"{AUTO}, mmpr or one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _by_files(root: Path, layout: str, file: str | None) -> Any:
    """The importer of a layout that is more than tables, if it is meant, or if the folder has its files."""
    if layout == "mmpr":
        return import_mmpr
    if layout not in (AUTO, "llama_factory") or not root.is_dir() or (layout == AUTO and file is not None):
        return None
    if is_llama_factory(root) or (layout == "llama_factory" and (root / INFO).is_file()):
        log.info("%s is LLaMA-Factory's data folder: it has a %s", root, INFO)
        return import_llama_factory
    if layout == AUTO and is_mmpr(root):
        log.info("%s is in the layout mmpr: it has a %s", root, META)
        return import_mmpr
    released = next((name for name in FILES if (root / name).is_file()), None)
    if layout == AUTO and released is not None:
        log.info("%s is in the layout mm_rlhf: it has a %s", root, released)
        return import_released
    return None


def _by_fields(first: Mapping[str, Any], rows: RowSource) -> str:
    name = next(known_by(first), None)
    if name is None:
        raise DataError(
            "no layout is known for these rows",
            where=rows.name,
            given=_wrapped(first) or f"fields {sorted(first)}",
            expected=f"rows of one of {', '.join(LAYOUTS)}",
            fix="write ten lines that turn a row into a record: data=converted data.importer.convert=module.function",
        )
    layout = LAYOUTS[name]
    has = [*layout.fields, *(field for field in layout.either if first.get(field) is not None)]
    log.info("%s is in the layout %s (%s): its rows have %s", rows.name, name, layout.title, ", ".join(has))
    return name


def _wrapped(row: Mapping[str, Any]) -> str | None:
    """What a file is that holds one object around its records."""
    inside = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(row) != 1 or not inside:
        return None
    return f"one object, whose records are a list under {inside[0]!r}: write that list alone"


def _suggesting(drafts: Drafts, first: Mapping[str, Any], chosen: Layout | None) -> Iterator[Draft | Rejection]:
    """Pass on what comes; where nothing fits, say which layout the first row looks like, if it is another."""
    try:
        yield from drafts
    except NothingFitsError as error:
        other = next((name for name in known_by(first) if LAYOUTS[name] is not chosen), None)
        error.fix = "repair the rows: what is wrong with the first of them is said above"
        if other is not None and next(known_by(first)) == other:
            error.fix = f"these rows look like {other} ({LAYOUTS[other].title}): data={other}"
        raise
