"""What an importer found, as JSON: a query whose media are still where they were, to be read at any later time."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Slot
from mmrlhf.records.draft import Draft
from mmrlhf.records.embedded import Embedded, Place
from mmrlhf.records.fields import MediaItem
from mmrlhf.types import PreferenceGroup, Response


def draft_record(draft: Draft) -> dict[str, Any]:
    """A draft in JSON; `read_draft` reads it."""
    group = draft.group
    return {
        "id": draft.id,
        "key": group.key,
        "root": str(draft.root.resolve()),
        "where": draft.where,
        "media": [_item_record(item) for item in draft.media],
        "own_media": [[_item_record(item) for item in items] for items in draft.own_media],
        "prompt": group.prompt.to_record(),
        "responses": [{name: value for name, value in vars(response).items() if name != "media"}
                      for response in group.responses],
        "category": group.category,
        "source": group.source,
        "licence": group.licence,
        "pairs": group.pairs,
        "meta": dict(group.meta),
    }  # fmt: skip


def read_draft(record: Mapping[str, Any]) -> Draft:
    """The draft that a record was made of, its media still unread."""
    media = tuple(map(_item, record["media"]))
    own = tuple(tuple(map(_item, items)) for items in record["own_media"])
    shown = media or next(filter(None, own), ())
    pairs = record["pairs"]
    group = PreferenceGroup(
        key=record["key"],
        prompt=Conversation.from_record(record["prompt"], [item.slot for item in shown]),
        responses=tuple(Response(**response) for response in record["responses"]),
        category=record["category"],
        source=record["source"],
        licence=record["licence"],
        pairs=None if pairs is None else tuple((chosen, rejected) for chosen, rejected in pairs),
        meta=record["meta"],
    )
    return Draft(record["id"], group, Path(record["root"]), media, own, record["where"])


def _item_record(item: MediaItem) -> dict[str, Any]:
    if isinstance(item.ref, str):
        return {"kind": item.slot.kind, "path": item.ref}
    found: dict[str, Any] = {"kind": item.slot.kind, "digest": item.ref.digest, "name": item.ref.name}
    if isinstance(item.ref.source, bytes):
        return found | {"base64": base64.b64encode(item.ref.source).decode()}
    return found | {"file": str(item.ref.source.file.resolve()), "at": item.ref.source.at,
                    "steps": list(item.ref.source.steps)}  # fmt: skip


def _item(record: Mapping[str, Any]) -> MediaItem:
    slot: Slot = IMAGE if record["kind"] == IMAGE.kind else VIDEO
    if "path" in record:
        return MediaItem(slot, record["path"])
    if "base64" in record:
        source: Place | bytes = base64.b64decode(record["base64"])
    else:
        source = Place(Path(record["file"]), record["at"], tuple(record["steps"]))
    return MediaItem(slot, Embedded(record["digest"], source, record["name"]))
