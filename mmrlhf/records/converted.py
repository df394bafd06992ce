"""Tables of any layout through one function that turns a row into a record: `dict -> dict`.

The function takes a row as it stands in the file and returns a ranked record (`{"id", "prompt", "images",
"responses"}`) or a pair (`{"id", "prompt", "images", "chosen", "rejected"}`); reading, checking, regrouping and
reporting are the same for all. A new layout, or a benchmark of reward models, is such a function and a YAML that names
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.records.draft import Drafts
from mmrlhf.records.json_text import Row, as_row
from mmrlhf.records.own import find_function
from mmrlhf.records.pair_forms import is_pair
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.ranked_rows import import_ranked
from mmrlhf.records.sources import OnBadLine
from mmrlhf.records.table_files import tables_source

Convert = Callable[[dict[str, Any]], Mapping[str, Any]]
LAYOUT = "Parquet files, a jsonl file or a JSON array, whose rows the function `convert` understands"


def import_converted(
    root: Path | str,
    *,
    convert: str,
    file: str | None = None,
    media_folder: str = "",
    on_bad_line: OnBadLine = "reject",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read tables whose rows a function turns into records.

    Args:
        root: folder with the tables, or one table; media paths are relative to it.
        convert: `module.function`, importable from the current folder. A row that it cannot read (it raises a KeyError,
            IndexError, TypeError or ValueError) is a bad row, with what it raised as the reason.
        file: name or pattern of the tables below root; by default all Parquet files, else the only jsonl or json file.
        media_folder: folder below root that media paths are relative to.
        on_bad_line, media, source, licence: as in `import_ranked`.

    Raises:
        ConfigError: no such function.
        DataError: no such folder or file; while drafts are taken, bad rows (unless rejected), or no records.
    """
    function = find_function(convert, setting="importer.convert")
    rows = tables_source(root, file, media_folder, LAYOUT)
    first, converted = rows.converted(lambda row, where: _applied(function, row, where, convert)).begun()
    read = import_pairs if is_pair(first) else import_ranked
    return read(converted, on_bad_line=on_bad_line, media=media, source=source, licence=licence)


def _applied(function: Convert, row: Row, where: str, name: str) -> Row:
    try:
        record = function(dict(row))
    except (LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{name} cannot read this row", where=where, given=reason) from error
    return as_row(dict(record) if isinstance(record, Mapping) else record, where)
