"""Sets of queries without ranked answers: LLaVA's instruction sets, and plain questions about pictures.

`{"id", "image", "conversations": [{"from": "human", "value": "<image> ..."}, {"from": "gpt", ...}]}` as LLaVA
and others publish them, the same as messages, or `{"image", "prompt"}`, with or without `responses`. What the
set answers itself is no response: it is kept as `meta.reference`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmrlhf.errors import DataError
from mmrlhf.ranges import Count
from mmrlhf.records.draft import Drafts
from mmrlhf.records.fields import VIDEOS, media_fields, pick, wrong_type
from mmrlhf.records.json_text import Row
from mmrlhf.records.messages import read_turns
from mmrlhf.records.ranked_rows import import_ranked
from mmrlhf.records.sources import OnBadLine
from mmrlhf.records.table_files import tables_source

LAYOUT = (
    '{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]} or {"image", "prompt"}'
)
Which = Literal["first", "last"]
_TALK = ("conversations", "messages", "conversation")
_OPTION = re.compile(r"(?m)^[^\S\n]*\(?([A-H])[).:]\s")


def import_queries(
    root: Path | str,
    *,
    file: str | None = None,
    media_folder: str = "",
    turn: Which = "first",
    long_from: Count = 30,
    on_bad_line: OnBadLine = "reject",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read queries; a record without a category gets video, mcq, long or short.

    Args:
        root: folder with the tables, or one table.
        file: name or pattern of the tables below root; by default all Parquet files, else the only jsonl or json file.
        media_folder: folder below root that media paths are relative to.
        turn: which question of a conversation is the query: the `first`, or the `last` with all before it.
        long_from: words of the set's own answer from which on a question is `long`, else `short`; one with two options
            or more in lines of their own is `mcq`, one about a clip `video`.
        on_bad_line, media, source, licence: as in `import_ranked`.

    Raises:
        DataError: no such folder or file; while drafts are taken, bad rows (unless rejected), or none that fits.
    """
    rows = tables_source(root, file, media_folder, "tables of queries")
    return import_ranked(
        rows.converted(partial(_query, turn=turn, long_from=long_from)),
        on_bad_line=on_bad_line,
        media=media,
        answered=False,
        source=source,
        licence=licence,
        layout=LAYOUT,
    )


def _query(row: Row, where: str, *, turn: Which, long_from: int) -> Row:
    """A row in the full layout, with the set's own answer as its reference."""
    name, talk = pick(row, _TALK)
    # what else says a question stays in the row, so that it is counted among the fields that are left out
    found = {
        key: value for key, value in row.items() if key != name and (key not in _TALK or value not in (None, talk))
    }
    if talk is not None:
        found["prompt"], reference, left = _asked(talk, where, name, turn)
        if row.get("prompt") not in (None, found["prompt"]):
            found[f"prompt, beside {name}"] = row["prompt"]
        extra = ({"reference": reference} if reference else {}) | ({"turns_left": left} if left else {})
        found["meta"] = {**_meta(row, where), **extra}
    if found.get("category") is None:
        found["category"] = _category(found, where, long_from)
    if pick(found, ("id", "question_id"))[1] is None:
        found["id"] = _id(found)
    return found


def _asked(talk: Any, where: str, name: str, turn: Which) -> tuple[Any, str, int]:
    """The messages up to a question, what the set answers to it, and how many questions come later."""
    turns = read_turns(talk, where, name)
    if isinstance(talk, str):
        return talk, "", 0
    asked = [place for place, each in enumerate(turns) if each.role == "user"]
    if not asked:
        raise DataError(
            "conversation has no question", where=f"{where}:{name}", given=[each.role for each in turns],
            expected="a turn of the user's (human)",
        )  # fmt: skip
    place = asked[0] if turn == "first" else asked[-1]
    messages = [talk] if isinstance(talk, Mapping) else talk
    behind = turns[place + 1] if place + 1 < len(turns) else None
    reference = behind.text if behind is not None and behind.role == "assistant" else ""
    return _simplest(messages[: place + 1]), reference, sum(later > place for later in asked)


def _simplest(messages: list[Mapping[str, Any]]) -> Any:
    """The text of a prompt that is one text, else its messages."""
    value = pick(messages[0], ("content", "value"))[1]
    return value if len(messages) == 1 and isinstance(value, str) else messages


def _category(row: Row, where: str, long_from: int) -> str:
    if any(item.slot.kind == "video" for item in media_fields(row, where)) or any(row.get(name) for name in VIDEOS):
        return "video"
    prompt = row.get("prompt")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)
    if len({match[1] for match in _OPTION.finditer(text.replace("\\n", "\n"))}) >= 2:
        return "mcq"
    reference = str(_meta(row, where).get("reference", ""))
    return "long" if len(reference.split()) >= long_from else "short"


def _meta(row: Row, where: str) -> dict[str, Any]:
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise wrong_type(where, "meta", meta, "an object")
    return meta


def _id(row: Row) -> str:
    """An id of a record that has none, from all that it says."""
    said = json.dumps({name: row[name] for name in sorted(row) if name != "meta"}, default=str)
    return f"q{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"
