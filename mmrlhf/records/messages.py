"""Messages of a chat, as people write them, read into turns whose parts are texts, places of media, and media.

A message is `{"role": "user", "content": text or parts}` or `{"from": "human", "value": text}`. A part is
`{"type": "text", "text": ...}`, or a picture or video that is named in it, or only its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf.conversation import IMAGE, VIDEO, Role, Slot
from mmrlhf.records.embedded import Embedded
from mmrlhf.records.fields import MediaItem, pick, wrong_type

_ROLES: dict[str, Role] = {
    **{name: "user" for name in ("human", "user")},
    **{name: "assistant" for name in ("gpt", "assistant", "model", "bot", "chatgpt")},
    "system": "system",
}
_KINDS = {
    **{name: IMAGE for name in ("image", "image_url", "input_image")},
    **{name: VIDEO for name in ("video", "video_url", "input_video")},
}
_TEXTS = ("text", "input_text", "output_text")
# Where a part holds what it shows; each may be an object that holds it under "url".
HOLDERS = ("image", "image_url", "video", "video_url", "url", "path", "bytes")
_PLACEHOLDER = re.compile(r"<(image|video)>")
_LEADING = re.compile(r"\s*(?:<(?:image|video)>\s*)+")


@dataclass(frozen=True)
class RawTurn:
    """A turn as a record says it: texts, places of media that the record's fields name, and media named here."""

    role: Role
    parts: tuple[str | Slot | MediaItem, ...]

    @property
    def text(self) -> str:
        """The texts alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def shows_media(self) -> bool:
        """Whether it has parts beside texts."""
        return not all(isinstance(part, str) for part in self.parts)


def read_turns(value: Any, where: str, name: str, role: Role = "user") -> list[RawTurn]:
    """The turns of a conversation; a text by itself is a turn of `role`, a message by itself the only one.

    Placeholders in a user's texts are places of media; in an answer, or a system turn, they are text.

    Raises:
        DataError: another structure, an unknown role or kind of part.
    """
    items = [{"role": role, "content": value}] if isinstance(value, str) else value
    items = [items] if isinstance(items, Mapping) else items
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise wrong_type(where, name, value, "a text, a message, or a list of messages")
    place = f"{where}:{name}"
    return [_turn(item, place if isinstance(value, str) else f"{place}[{n}]") for n, item in enumerate(items)]


def count_placeholders(text: str) -> int:
    """How often a text holds what a user writes for a medium."""
    return len(_PLACEHOLDER.findall(text))


def _turn(item: Mapping[str, Any], where: str) -> RawTurn:
    name, spelled = pick(item, ("role", "from"))
    if not isinstance(spelled, str) or spelled not in _ROLES:
        raise wrong_type(where, name, spelled, f"one of {', '.join(_ROLES)}")
    role = _ROLES[spelled]
    name, content = pick(item, ("content", "value"))
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise wrong_type(where, name, content, "a text or a list of parts")
    read = [part if isinstance(part, str) else _part(part, f"{where}.{name}[{n}]") for n, part in enumerate(parts)]
    if role != "user":
        return RawTurn(role, tuple(read))
    return RawTurn(role, tuple(each for part in read for each in (_split(part) if isinstance(part, str) else [part])))


def _split(text: str) -> Iterator[str | Slot]:
    """A user's text as words and places of media; white space around places in front is the template's business."""
    leading = _LEADING.match(text)
    if leading is not None:
        yield from (Slot(kind) for kind in _PLACEHOLDER.findall(leading.group()))
        text = text[leading.end() :]
    start = 0
    for found in _PLACEHOLDER.finditer(text):
        if found.start() > start:
            yield text[start : found.start()]
        yield Slot("image" if found[1] == "image" else "video")
        start = found.end()
    if start < len(text) or start == 0:
        yield text[start:]


def _part(part: Any, where: str) -> str | Slot | MediaItem:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind in _TEXTS and isinstance(part.get("text"), str):
        return part["text"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise wrong_type(where, "part", part, "a text, image or video")
    slot = _KINDS[kind]
    held = next((part[name] for name in HOLDERS if part.get(name)), None)
    held = held.get("url") if isinstance(held, Mapping) else held
    if held is None:
        return slot
    if not isinstance(held, str | Embedded):
        raise wrong_type(where, kind, held, "a path, an address or embedded bytes")
    return MediaItem(slot, held)
