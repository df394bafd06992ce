"""Rows of (chosen, rejected) pairs rebuilt into ranked groups.

Rows of one query are put together, and its responses are told apart by their text. A reason that an annotator wrote for
a response becomes its short critique.
"""

from __future__ import annotations

from pathlib import Path

from mmrlhf.errors import ConfigError
from mmrlhf.records.draft import Drafts
from mmrlhf.records.pair_forms import Preferred, ranked_pair
from mmrlhf.records.ranked_rows import GroupBy, import_grouped
from mmrlhf.records.sources import OnBadLine, RowSource
from mmrlhf.records.table_files import tables_source

LAYOUT = (
    'rows {"images", "prompt", "chosen", "rejected"} (texts or conversations) or {"conversations_a", '
    '"conversations_b"}, in Parquet files, a jsonl file or a JSON array; images are paths or embedded'
)


def import_preference_rows(
    root: Path | str,
    *,
    file: str | None = None,
    media_folder: str = "",
    group_by: GroupBy = "query",
    preferred: Preferred | None = None,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read pairs as LLaVA, RLAIF-V and the Hugging Face hub write them (`mmrlhf.records.pair_forms` says which forms).

    Args:
        root: folder with the tables, or one table.
        file: name or pattern of the tables below root; by default all Parquet files, else the only jsonl or json file.
        media_folder: folder below root that media paths are relative to.
        group_by: "query" puts rows with the same prompt and media together, "id" only those that also share an id.
        preferred: the better one of two conversations where a row does not say, "a" or "b".
        on_bad_line: "error" stops at the first bad row; "reject" lists it.
        media: false reads the records as text only.
        source, licence: kept in every group that does not name its own.

    Raises:
        DataError: no such folder or file; while drafts are taken, bad rows (unless rejected), or no records.
    """
    return import_pairs(
        tables_source(root, file, media_folder, LAYOUT), group_by=group_by, preferred=preferred,
        on_bad_line=on_bad_line, media=media, source=source, licence=licence,
    )  # fmt: skip


def import_pairs(
    rows: RowSource,
    *,
    group_by: GroupBy = "id",
    preferred: Preferred | None = None,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read all pair rows, then hand out one draft per query, in the order of first appearance.

    Args:
        rows: the pairs.
        group_by, preferred, on_bad_line, media, source, licence: as in `import_preference_rows`.

    Raises:
        DataError: while drafts are taken, a bad row (unless rejected), or no rows, or none that is a pair.
    """
    if preferred not in ("a", "b", None):
        raise ConfigError(
            "importer cannot work with these settings", given=preferred, expected="preferred a, b or null"
        )
    return import_grouped(
        rows.converted(lambda row, where: ranked_pair(row, where, preferred)), group_by=group_by,
        on_bad_line=on_bad_line, media=media, source=source, licence=licence, layout=LAYOUT,
    )  # fmt: skip
