"""Rows that hold a query with all its responses; every row is checked before the first draft is handed out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmrlhf.errors import DataError
from mmrlhf.records.draft import Draft, Drafts, Rejection, query_hash, query_key, rejection
from mmrlhf.records.fields import id_field
from mmrlhf.records.media_paths import category_of
from mmrlhf.records.ranked_record import RankedRecord, parse_ranked
from mmrlhf.records.sources import OnBadLine, RowSource, checked
from mmrlhf.types import PreferenceGroup

LAYOUT = 'records {"id", "prompt", "image", "images", "video" or "videos", "responses": [{"text", "rank", ...}]}'
_OTHER_LAYOUT = "name the file with pairs, data.importer.file=dpo_pairs.jsonl, or bring the records into this layout"


class _Seen(NamedTuple):
    """What the first reading keeps of a row: which query it is, or why it is left out."""

    id: str
    query: str
    rejection: Rejection | None


def import_ranked(
    rows: RowSource,
    *,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read ranked records twice: once to check them all, once to hand them out, so that none is held in memory.

    Args:
        rows: the records.
        on_bad_line: "error" stops at the first bad row, "reject" lists it in the report.
        media: false reads the records as text only.
        source, licence: kept in every group that does not name its own.

    Raises:
        DataError: a bad row (unless rejected), no rows, or none that is a ranked record.
    """
    seen = _check_all(rows, on_bad_line, media)
    _require_records(rows, seen)
    shared: dict[str, set[str]] = {}
    for line in seen.values():
        shared.setdefault(line.id, set()).add(line.query)

    def items() -> Iterator[Draft | Rejection]:
        for where, row in rows.rows("reject"):
            line = seen.get(where)
            if line is not None and line.rejection is not None:
                yield line.rejection
                continue
            record = None if line is None or isinstance(row, DataError) else _parse_again(row, where, line, media)
            if line is None or record is None or isinstance(row, DataError):
                yield Rejection(line.id if line else "?", "row changed while it was read", where)
                continue
            key = query_key(line.id, line.query, len(shared[line.id]))
            yield Draft(
                line.id,
                _group(record, key, str(row.get("source") or source), str(row.get("licence") or licence)),
                rows.root,
                record.media if media else (),
                record.own_media,
                where,
                record.notes,
                record.problems,
            )

    return Drafts(items(), len(seen))


def _parse_again(row: dict, where: str, line: _Seen, media: bool) -> RankedRecord | None:
    """The record, if it is still the one that was checked."""
    try:
        record = parse_ranked(row, where, media=media)
    except DataError:
        return None
    return record if query_hash(record.prompt, record.media) == line.query else None


def _check_all(rows: RowSource, on_bad_line: OnBadLine, media: bool) -> dict[str, _Seen]:
    """Read every row once, so that a bad one stops the import before anything is written."""
    seen: dict[str, _Seen] = {}
    first_place: dict[tuple[str, str], str] = {}
    for where, row in rows.rows(on_bad_line):
        if isinstance(row, DataError):
            seen[where] = _Seen("?", where, rejection("?", row, where))
            continue
        try:
            record_id, record = id_field(row, where), parse_ranked(row, where, media=media)
        except DataError as error:
            seen[where] = _Seen("?", where, rejection(row.get("id", "?"), checked(error, on_bad_line), where))
            continue
        query = query_hash(record.prompt, record.media)
        before = first_place.setdefault((record_id, query), where)
        again = before != where
        seen[where] = _Seen(
            record_id, query, Rejection(record_id, "query occurs twice", f"{where}, first {before}") if again else None
        )
    return seen


def _require_records(rows: RowSource, seen: dict[str, _Seen]) -> None:
    """One broken row is the row's fault; all of them mean that the file is of another layout."""
    if not seen:
        raise DataError("data file has no records", where=rows.name, given="no rows", expected=LAYOUT)
    bad = [(where, line.rejection) for where, line in seen.items() if line.rejection is not None]
    if len(bad) == len(seen):
        where, first = bad[0]
        raise DataError(
            "no line of the file is a record of this layout",
            where=where, given=f"{first.reason}: {first.where}", expected=LAYOUT, fix=_OTHER_LAYOUT,
        )  # fmt: skip


def any_row_fits(rows: RowSource) -> bool:
    """Say whether at least one row is a ranked record."""
    for where, row in rows.rows("reject"):
        try:
            if not isinstance(row, DataError):
                parse_ranked(row, where)
                return True
        except DataError:
            continue
    return False


def _group(record: RankedRecord, key: str, source: str, licence: str) -> PreferenceGroup:
    return PreferenceGroup(
        key=key,
        prompt=record.prompt,
        responses=record.responses,
        category=record.category or category_of(record.media),
        source=source,
        licence=licence,
        pairs=record.pairs,
        meta=record.meta,
    )
