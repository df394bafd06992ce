"""Rows of the full layout to drafts, in one pass: each row is checked, handed out, and forgotten.

What has to be remembered over all rows, which ids and queries there were, lies on the disk
(`mmrlhf.records.external`), and so do the rows themselves where those of one query are put together: then the first
draft comes after the last row has been read. Memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.draft import Draft, Drafts, Rejection, query_hash, query_key, rejection
from mmrlhf.records.external import FirstPlaces, Grouping
from mmrlhf.records.fields import id_field, optional_text, pick
from mmrlhf.records.json_text import Row
from mmrlhf.records.media_paths import category_of
from mmrlhf.records.merged_records import MergedRecord
from mmrlhf.records.ranked_record import RankedRecord, parse_ranked
from mmrlhf.records.sources import OnBadLine, RowSource, checked
from mmrlhf.types import PreferenceGroup

GroupBy = Literal["id", "query"]
LAYOUT = 'records {"id", "prompt", "image", "images", "video" or "videos", "responses": [{"text", "rank", ...}]}'
_ID = ("id", "question_id")


class NothingFitsError(DataError):
    """No row of an input is a record of its layout: the input is of another."""


class _Read(NamedTuple):
    """A row that was read: which query it is of, and what it says."""

    id: str
    query: str
    where: str
    record: RankedRecord
    source: str
    licence: str


def import_ranked(
    rows: RowSource,
    *,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    answered: bool = True,
    source: str = "",
    licence: str = "",
    layout: str = LAYOUT,
) -> Drafts:
    """Read ranked records, each a query with all its responses; a query that comes up again under its id is rejected.

    Args:
        rows: the records, which are read once.
        on_bad_line: "error" stops at the first bad row, "reject" lists it in the report.
        media: false reads the records as text only.
        answered: false lets records have no responses.
        source, licence: kept in every group that does not name its own.
        layout: what is expected, for errors.

    Raises:
        DataError: while drafts are taken: a bad row (unless rejected), no rows, or none that is a ranked record.
    """
    reader = _Reader(media, source, licence, rows.root, None, answered)
    return Drafts(reader.drafts(rows, on_bad_line, layout), rows.count())


def import_grouped(
    rows: RowSource,
    *,
    group_by: GroupBy,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
    layout: str = LAYOUT,
) -> Drafts:
    """Read records of which several may be of one query, and put those together, in the order of first appearance.

    Rows wait on the disk, in the folder for temporary files, until all are read: their texts, not their media.

    Args:
        rows: records in the full layout, which are read once; an id is only required to group by it.
        group_by: "query" puts rows with the same prompt and media together, "id" only those that also share an id.
        on_bad_line, media, source, licence: as in `import_ranked`. Two equal answers are always a rejection.
        layout: what is expected, for errors.

    Raises: as `import_ranked`.
    """
    if group_by not in ("id", "query"):
        raise ConfigError("importer cannot work with these settings", given=group_by, expected="group_by id or query")
    reader = _Reader(media, source, licence, rows.root, group_by)
    return Drafts(reader.drafts(rows, on_bad_line, layout), rows.count())


class _Reader:
    """One pass over rows."""

    def __init__(
        self,
        media: bool,
        source: str,
        licence: str,
        root: Path,
        group_by: GroupBy | None,
        answered: bool = True,
    ) -> None:
        self._answered = answered
        self._media, self._source, self._licence, self._root = media, source, licence, root
        self._group_by: GroupBy | None = group_by
        self._seen = FirstPlaces()

    def drafts(self, rows: RowSource, on_bad_line: OnBadLine, layout: str) -> Iterator[Draft | Rejection]:
        waiting: Grouping[_Read] = Grouping()
        first_bad: Rejection | None = None
        fit = False
        for where, row in rows.rows(on_bad_line):
            try:
                if isinstance(row, DataError):
                    raise row
                read = self._read(row, where)
            except DataError as error:
                found = rejection(_id_of(row), checked(error, on_bad_line), where)
                first_bad = first_bad or found
                yield found
                continue
            fit = True
            if self._group_by is None:
                yield self._once(read)
            elif _equal_answers(row):
                yield Rejection(read.id, "chosen and rejected are the same text", where)
            else:
                waiting.add(f"{read.id if self._group_by == 'id' else ''}\0{read.query}", read)
        if not fit:
            raise _nothing_fits(rows, first_bad, layout)
        for group in waiting.groups():
            yield from self._together(group, on_bad_line)

    def _read(self, row: Row, where: str) -> _Read:
        record = parse_ranked(row, where, media=self._media, answered=self._answered)
        # answers about media of their own are another query than the same words about others
        query = query_hash(record.prompt, record.media or [item for items in record.own_media for item in items])
        named = pick(row, _ID)[1] is not None
        record_id = id_field(row, where) if named or self._group_by != "query" else query
        source, licence = (optional_text(row, (name,), where) for name in ("source", "licence"))
        return _Read(record_id, query, where, record, source or self._source, licence or self._licence)

    def _once(self, read: _Read) -> Draft | Rejection:
        before = self._seen.add(f"query\0{read.id}\0{read.query}", read.where)
        if before != read.where:
            return Rejection(read.id, "query occurs twice", f"{read.where}, first {before}")
        return self._draft(read, read.record)

    def _together(self, group: Iterator[_Read], on_bad_line: OnBadLine) -> Iterator[Draft | Rejection]:
        """One draft of all rows of a query; a row that has more answers than can be compared is left out."""
        first = next(group)
        merged = MergedRecord(first.record)
        for read in chain([first], group):
            try:
                merged.add(read.record, read.where)
            except DataError as error:
                yield rejection(read.id, checked(error, on_bad_line), read.where)
        yield self._draft(first, merged.result())

    def _draft(self, first: _Read, record: RankedRecord) -> Draft:
        # of several queries under one id the first keeps it as its key
        shared = self._seen.add(f"id\0{first.id}", first.query) != first.query
        media = record.media if self._media else ()
        return Draft(
            first.id,
            PreferenceGroup(
                key=query_key(first.id, first.query, 2 if shared else 1),
                prompt=record.prompt,
                responses=record.responses,
                category=record.category or category_of(media or record.media),
                source=first.source,
                licence=first.licence,
                pairs=record.pairs,
                meta=record.meta,
            ),
            self._root, media, record.own_media if self._media else (), first.where, record.notes, record.problems,
        )  # fmt: skip


def _id_of(row: Row | DataError) -> object:
    value = None if isinstance(row, DataError) else pick(row, _ID)[1]
    return "?" if value is None else value


def _equal_answers(row: Row) -> bool:
    answers = row["responses"]
    return len(answers) == 2 and all(
        answers[0].get(name) == answers[1].get(name) for name in ("text", "image", "images", "video", "videos")
    )


def _nothing_fits(rows: RowSource, first_bad: Rejection | None, layout: str) -> DataError:
    """One broken row is the row's fault; all of them mean that the file is of another layout."""
    if first_bad is None:
        return DataError("data file has no records", where=rows.name, given="no rows", expected=layout)
    return NothingFitsError(
        "no line of the file is a record of this layout",
        where=first_bad.where, given=first_bad.reason, expected=layout,
        fix="repair the records, or choose their layout: data=auto knows it by their fields",
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
