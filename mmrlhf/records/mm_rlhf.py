"""The layout of the released data: `data.jsonl` (ranked records) or `dpo_pairs.jsonl` (pairs), and media folders.

The embedded world and RewardBench come in the same layout. Which of the two a file is, its first record says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrlhf.records.draft import Draft, Drafts, Rejection
from mmrlhf.records.pair_forms import is_pair
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.ranked_rows import any_row_fits, import_ranked
from mmrlhf.records.sources import OnBadLine, RowSource, file_source
from mmrlhf.records.table_files import find_file

log = logging.getLogger(__name__)

# what a draft notes for every line of a data.jsonl that could not be read, beside pairs that could
UNREAD_LINES = "lines in another layout"
FILES = ("data.jsonl", "dpo_pairs.jsonl")
LAYOUT = (
    "a folder with data.jsonl or dpo_pairs.jsonl, and media in folders such as long/, short/, mcq/, safety/, video/"
)


def import_released(
    root: Path | str,
    *,
    file: str | None = None,
    media_folder: str = "",
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read a folder in the released layout.

    A data.jsonl of which no line is in this layout is passed over, with a warning, if there is a dpo_pairs.jsonl.

    Args:
        root: the folder; media paths in the records are relative to it.
        file: the jsonl file below root; by default data.jsonl, else dpo_pairs.jsonl.
        media_folder: folder below root that media paths are relative to.
        on_bad_line: "error" stops at the first bad line, "reject" lists it in the report.
        media: false reads the records as text only.
        source, licence: kept in every group that does not name its own.

    Raises:
        DataError: no such folder or file; while drafts are taken, bad lines (unless rejected), or no records.
    """
    path = find_file(Path(root), file, FILES, LAYOUT)
    pairs, folder = path.with_name(FILES[1]), path.parent / media_folder
    first, rows = file_source(path, folder).begun()
    options: dict[str, Any] = {"on_bad_line": on_bad_line, "media": media, "source": source, "licence": licence}
    if is_pair(first):
        return import_pairs(rows, **options)
    if file is None and path != pairs and pairs.is_file() and not any_row_fits(file_source(path, folder)):
        return _instead(rows, import_pairs(file_source(pairs, folder), **options))
    return import_ranked(rows, **options)


def _instead(unread: RowSource, drafts: Drafts) -> Drafts:
    """Say that another file was read, and note on the first draft how many lines were not."""
    lines = sum(1 for _ in unread.read())
    log.warning("no line of %s is in a known layout, so %s is read instead", unread.name, FILES[1])
    total = drafts.__length_hint__()

    def items() -> Iterator[Draft | Rejection]:
        noted = False
        for item in drafts:
            if not noted and isinstance(item, Draft):
                item, noted = replace(item, notes={**item.notes, UNREAD_LINES: lines}), True
            yield item

    return Drafts(items(), total)
