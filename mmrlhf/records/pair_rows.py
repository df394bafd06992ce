"""Rows of (chosen, rejected) pairs rebuilt into ranked groups.

Rows of one query are put together, and its responses are told apart by their text. A reason that an annotator wrote for
a response becomes its short critique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmrlhf.conversation import Conversation
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.conversations import Preferred, as_pair
from mmrlhf.records.draft import Draft, Drafts, Rejection, query_hash, query_key, rejection
from mmrlhf.records.fields import (
    MEDIA,
    PROMPT,
    MediaItem,
    check_responses,
    id_field,
    media_fields,
    optional_text,
    pick,
    text_field,
    wrong_type,
)
from mmrlhf.records.json_text import Row
from mmrlhf.records.media_paths import category_of
from mmrlhf.records.messages import count_placeholders
from mmrlhf.records.pair_ranks import Pair, rank_from_pairs
from mmrlhf.records.query_form import AS_TEXT, read_question
from mmrlhf.records.sources import OnBadLine, RowSource, checked, files_source, find_tables
from mmrlhf.types import PreferenceGroup, Response

GroupBy = Literal["id", "query"]
LAYOUT = (
    'rows {"images", "prompt", "chosen", "rejected"} (texts or conversations) or {"conversations_a", '
    '"conversations_b"}, in Parquet files, a jsonl file or a JSON array; images are paths or embedded'
)
_ID = ("id", "question_id", "idx")
_CATEGORY = ("category", "origin_dataset")
_KNOWN = frozenset(
    PROMPT + MEDIA + _ID + _CATEGORY + ("chosen", "rejected", "is_tie", "chosen_reason", "rejected_reason")
)  # fmt: skip


@dataclass
class _Query:
    """What the rows seen so far say about one query."""

    id: str
    hash: str
    prompt: Conversation
    media: tuple[MediaItem, ...]
    category: str | None
    where: str
    rows: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, dict[str, None]] = field(default_factory=dict)
    pairs: dict[Pair, None] = field(default_factory=dict)
    ties: dict[Pair, None] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def place(self, text: str, reason: str | None) -> int:
        if text in self.rows:
            self.notes["repeated responses merged"] += 1
        if reason:
            self.reasons.setdefault(text, {})[reason] = None
        return self.rows.setdefault(text, len(self.rows))


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
    """Read pairs as LLaVA, RLAIF-V and the Hugging Face hub write them (`as_pair` says which forms).

    Args:
        root: folder with the tables, or one table.
        file: name or pattern of the tables below root; by default all Parquet files, else the only jsonl or json file.
        media_folder: folder below root that media paths are relative to.
        group_by: "query" puts rows with the same prompt and media together, "id" only those that also share an id.
        preferred: the better one of two conversations where a row does not say, "a" or "b".
        on_bad_line: "error" stops at the first bad row, before anything is handed out; "reject" lists it.
        media: false reads the records as text only.
        source, licence: kept in every group.

    Raises:
        DataError: no such folder or file, bad rows (unless rejected), no records.
    """
    root = Path(root)
    paths = find_tables(root, file, LAYOUT)
    rows = files_source(paths, root if root.is_dir() else root.parent)
    return import_pairs(
        RowSource(rows.name, rows.root / media_folder, rows.read), group_by=group_by, preferred=preferred,
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
        DataError: a bad row (unless rejected), or no rows, or none that is a pair.
    """
    _check_options(group_by, preferred)
    queries: dict[tuple[str, str], _Query] = {}
    rejections: list[Rejection] = []
    failed = 0
    for where, row in rows.rows(on_bad_line):
        try:
            if isinstance(row, DataError):
                raise row
            rejected = _add(queries, as_pair(row, where, preferred), where, group_by, media)
        except DataError as error:
            record_id = "?" if isinstance(row, DataError) else pick(row, _ID)[1]
            rejected = rejection("?" if record_id is None else record_id, checked(error, on_bad_line), where)
            failed += 1
        if rejected is not None:
            rejections.append(rejected)
    if not queries:
        _require_pairs(rows, rejections, failed)
    shared = Counter(query.id for query in queries.values())

    def items() -> Iterator[Draft | Rejection]:
        yield from rejections
        for query in queries.values():
            yield _draft(query, query_key(query.id, query.hash, shared[query.id]), rows.root, media, source, licence)

    return Drafts(items(), len(rejections) + len(queries))


def _check_options(group_by: str, preferred: str | None) -> None:
    if group_by not in ("id", "query") or preferred not in ("a", "b", None):
        raise ConfigError(
            "importer cannot work with these settings",
            given=f"group_by={group_by}, preferred={preferred}",
            expected="group_by id or query; preferred a, b or null",
        )


def _require_pairs(rows: RowSource, rejections: list[Rejection], failed: int) -> None:
    """One broken row is the row's fault; all of them mean that the file is of another layout."""
    if not rejections:
        raise DataError("data file has no records", where=rows.name, given="no rows", expected=LAYOUT)
    if failed == len(rejections):
        raise DataError(
            "no line of the file is a record of this layout",
            where=rejections[0].where, given=rejections[0].reason, expected=LAYOUT,
            fix="choose another importer (data=NAME or data.importer=...), or bring the records into this layout",
        )  # fmt: skip


def _add(
    queries: dict[tuple[str, str], _Query], row: Row, where: str, group_by: GroupBy, media: bool
) -> Rejection | None:
    """Add one row to its query; a pair of equal texts is handed back as a rejection."""
    named = id_field(row, where, _ID) if group_by == "id" or pick(row, _ID)[1] is not None else None
    question = read_question(row, media_fields(row, where), where, media=media)
    chosen, rejected = text_field(row, ("chosen",), where), text_field(row, ("rejected",), where)
    reasons = [optional_text(row, (name,), where) for name in ("chosen_reason", "rejected_reason")]
    category = optional_text(row, _CATEGORY, where)
    tie = _is_tie(row, where)
    found = query_hash(question.conversation, question.media)
    record_id = found if named is None else named
    if chosen == rejected:
        return Rejection(record_id, "chosen and rejected are the same text", where)
    query = queries.setdefault(
        (record_id if group_by == "id" else "", found),
        _Query(record_id, found, question.conversation, question.media, category, where),
    )
    check_responses(len(query.rows.keys() | {chosen, rejected}), where)
    pair = query.place(chosen, reasons[0]), query.place(rejected, reasons[1])
    said = query.ties if tie else query.pairs
    query.notes["repeated pairs merged"] += pair in said
    said[pair] = None
    query.notes.update(question.notes)
    query.notes[AS_TEXT] += count_placeholders(chosen) + count_placeholders(rejected)
    query.notes.update(f"ignored field: {name}" for name in row.keys() - _KNOWN)
    return None


def _is_tie(row: Row, where: str) -> bool:
    value = row.get("is_tie")
    if value not in (None, 0, 1):
        raise wrong_type(where, "is_tie", value, "true or false")
    return bool(value)


def _draft(query: _Query, key: str, root: Path, media: bool, source: str, licence: str) -> Draft:
    ranking = rank_from_pairs(len(query.rows), query.pairs, query.ties)
    ranks = ranking.ranks or (None,) * len(query.rows)
    # Ties follow from ranks; beside explicit pairs they would be lost.
    lost_ties = [list(pair) for pair in query.ties] if ranking.ranks is None else []
    meta: dict[str, Any] = {"ties": lost_ties} if lost_ties else {}
    group = PreferenceGroup(
        key=key,
        prompt=query.prompt,
        responses=tuple(_response(text, rank, query.reasons) for text, rank in zip(query.rows, ranks, strict=True)),
        category=query.category or category_of(query.media),
        source=source,
        licence=licence,
        pairs=ranking.pairs,
        meta=meta,
    )
    return Draft(
        query.id, group, root, query.media if media else (), (), query.where,
        {name: count for name, count in query.notes.items() if count}, ranking.problems,
    )  # fmt: skip


def _response(text: str, rank: int | None, reasons: dict[str, dict[str, None]]) -> Response:
    """Make a response; different reasons for the same text, from different pairs, are kept as lines."""
    said = "\n".join(reasons.get(text, ()))
    return Response(text, rank, critiques={"short": said} if said else {}, reasons={"overall": said} if said else {})
