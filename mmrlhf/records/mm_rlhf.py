"""The layout of the released data: `data.jsonl` (ranked records) or `dpo_pairs.jsonl` (pairs), and media folders.

The embedded world and RewardBench come in the same layout. Which of the two a file is, its first record says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mmrlhf.records.conversations import is_pair
from mmrlhf.records.draft import Draft, Drafts, Rejection
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.ranked_rows import any_row_fits, import_ranked
from mmrlhf.records.sources import OnBadLine, RowSource, file_source, find_file

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
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read a folder in the released layout; every line is checked before the first draft is handed out.

    A data.jsonl of which no line is in this layout is passed over, with a warning, if there is a dpo_pairs.jsonl.

    Args:
        root: the folder; media paths in the records are relative to it.
        file: the jsonl file below root; by default data.jsonl, else dpo_pairs.jsonl.
        on_bad_line: "error" stops at the first bad line, "reject" lists it in the report.
        media: false reads the records as text only.
        source, licence: kept in every group that does not name its own.

    Raises:
        DataError: no such folder or file, bad lines (unless rejected), no records.
    """
    path = find_file(Path(root), file, FILES, LAYOUT)
    rows, pairs = file_source(path), path.with_name(FILES[1])
    if is_pair(rows.first()):
        return import_pairs(rows, on_bad_line=on_bad_line, media=media, source=source, licence=licence)
    if file is None and path != pairs and pairs.is_file() and not any_row_fits(rows):
        instead = file_source(pairs)
        drafts = import_pairs(instead, on_bad_line=on_bad_line, media=media, source=source, licence=licence)
        return _instead(rows, drafts)
    return import_ranked(rows, on_bad_line=on_bad_line, media=media, source=source, licence=licence)


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
