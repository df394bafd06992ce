"""Queries that share their conversation and media become one query, whose prefix is read once, and part again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from mmrlhf.inference.verdicts import Verdict
from mmrlhf.types import PreferenceGroup


def content_key(group: PreferenceGroup) -> str:
    """Name a query by what is asked: its prompt and its media, and neither its responses nor where it came from."""
    digest = hashlib.sha256()
    asked = json.dumps(group.prompt.to_record()).encode()
    for part in (asked, *(part for item in group.media for part in (item.kind.encode(), *item.data))):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]


def merge(groups: Sequence[PreferenceGroup]) -> PreferenceGroup:
    """One query with the responses of all, each text once."""
    texts = {response.text: response for group in groups for response in group.responses}
    return replace(groups[0], responses=tuple(texts.values()))


def part(group: PreferenceGroup, merged: PreferenceGroup, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts on one query's own responses, in their order."""
    by_text = {response.text: verdict for response, verdict in zip(merged.responses, verdicts, strict=True)}
    return [by_text[response.text] for response in group.responses]
