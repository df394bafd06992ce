"""Responses of a user's own to be scored: one JSON object per line, `{image | images | video, prompt, responses}`.

`responses` is a list of texts, or of objects as in `data.jsonl`. Media paths are absolute or relative to the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmrlhf.conversation import VIDEO
from mmrlhf.errors import DataError
from mmrlhf.files import expanded
from mmrlhf.records.draft import Draft
from mmrlhf.records.fields import MediaItem
from mmrlhf.records.media_paths import locate, locate_video
from mmrlhf.records.ranked_record import parse_ranked
from mmrlhf.records.sources import file_source
from mmrlhf.types import PreferenceGroup

LAYOUT = '{"image": PATH, "prompt": TEXT, "responses": [TEXT, ...]} in each line (or "images", "video", or no media)'


def read_questions(path: Path) -> list[Draft]:
    """Read a file of responses; the key of each query is its line, `line-1`, ...

    Raises:
        DataError: no file, no line, a line of another form, or media that do not exist; names the line.
    """
    if not path.is_file():
        raise DataError("no such file of responses", where=path, expected=LAYOUT)
    drafts = []
    for where, row in file_source(path).read():
        if isinstance(row, DataError):
            raise row
        drafts.append(_draft(row, path, where))
    if not drafts:
        raise DataError("a file of responses without a line", where=path, expected=LAYOUT)
    return drafts


def _draft(row: dict[str, Any], path: Path, where: str) -> Draft:
    responses = row.get("responses")
    if isinstance(responses, list):
        row = {**row, "responses": [{"text": item} if isinstance(item, str) else item for item in responses]}
    record = parse_ranked(row, where)
    key = f"line-{where.rpartition(':')[2]}"
    # From the root of the file system, so that absolute paths work as well.
    root = Path(path.resolve().anchor)
    media = tuple(_from(root, path, where, item) for item in record.media)
    own = tuple(tuple(_from(root, path, where, item) for item in items) for items in record.own_media)
    group = PreferenceGroup(key, record.prompt, record.responses, pairs=(), category=record.category or "unknown")
    name = row.get("id")
    return Draft(key if name is None else str(name), group, root, media, own, where, record.notes)


def _from(root: Path, path: Path, where: str, item: MediaItem) -> MediaItem:
    """The medium below the root of the file system; raises DataError if there is none."""
    if not isinstance(item.ref, str):
        return item
    ref = os.path.relpath(path.resolve().parent / expanded(item.ref), root)
    if item.slot == VIDEO:
        locate_video(root, ref)
    elif not locate(root, ref).is_file():
        raise DataError("media file does not exist", where=where, given=root / ref)
    return MediaItem(item.slot, ref)
