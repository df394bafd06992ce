"""What a record asks: its prompt, a text or messages, put together with the media that it names, in their order.

Placeholders (`<image>`, `<video>`) and parts without a reference say where the media of the record's media fields
stand. Where there are none, the media stand in front of the first user's turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Slot, Turn
from mmrlhf.errors import DataError
from mmrlhf.records.fields import PROMPT, MediaItem, pick, text_field
from mmrlhf.records.messages import RawTurn, count_placeholders, read_turns

STRIPPED, AS_TEXT = "placeholders stripped", "placeholders in answers, read as text"


@dataclass(frozen=True)
class Question:
    """A conversation whose last turn is the user's, the media in the order of its places, and what was changed."""

    conversation: Conversation
    media: tuple[MediaItem, ...]
    notes: Mapping[str, int] = field(default_factory=dict)


def prompt_field(row: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """The name and value of a record's prompt; raises DataError where it has none."""
    name, value = pick(row, PROMPT)
    return name, text_field(row, PROMPT, where) if value is None else value


def read_question(row: Mapping[str, Any], fields: Sequence[MediaItem], where: str, *, media: bool = True) -> Question:
    """Read a record's prompt.

    Args:
        fields: the media that the record's media fields name.
        media: false reads it as text only; media and their places are left out, and counted.

    Raises:
        DataError: no prompt, one of another structure, one that does not end with a user's turn, or another number of
            places than of media.
    """
    name, value = prompt_field(row, where)
    turns = read_turns(value, where, name)
    if not turns or turns[-1].role != "user":
        raise DataError(
            "the conversation does not end with a question",
            where=f"{where}:{name}",
            given=f"turns of {', '.join(turn.role for turn in turns) or 'nobody'}",
            expected="a user's turn last: its answers are compared",
            fix="repair the record",
        )
    answers = sum(count_placeholders(turn.text) for turn in turns if turn.role != "user")
    notes = {AS_TEXT: answers} if answers else {}
    if not media:
        places = sum(not isinstance(part, str) for turn in turns for part in turn.parts)
        words = Conversation(
            tuple(Turn(t.role, tuple(p for p in t.parts if isinstance(p, str)) or ("",)) for t in turns)
        )
        named = [part for turn in turns for part in turn.parts if isinstance(part, MediaItem)]
        items = (*fields, *(item for item in named if item not in fields))
        return Question(words, items, notes | ({STRIPPED: places} if places else {}))
    filled = _filled(turns, list(fields), f"{where}:{name}")
    items = tuple(part for turn in filled for part in turn.parts if isinstance(part, MediaItem))
    asked = (Turn(t.role, tuple(p.slot if isinstance(p, MediaItem) else p for p in t.parts)) for t in filled)
    return Question(Conversation(tuple(asked)), items, notes)


def _filled(turns: list[RawTurn], fields: list[MediaItem], where: str) -> list[RawTurn]:
    """The turns with a medium at every place."""
    named = [part for turn in turns for part in turn.parts if isinstance(part, MediaItem)]
    places = [part for turn in turns for part in turn.parts if isinstance(part, Slot)]
    if not places and (not named or not fields):
        return _in_front(turns, fields, where) if fields else turns
    if not places and named == fields:
        return turns  # named twice: in the messages, and in a column beside them
    shown = [item.slot for item in fields]
    # LLaVA writes <image> for a video, too
    clips = set(places) == {IMAGE} and set(shown) == {VIDEO}
    if sorted(str(VIDEO if clips else slot) for slot in places) != sorted(map(str, shown)):
        raise _mismatch(places, shown, bool(named), where)
    left = {slot: iter([item for item in fields if item.slot == slot]) for slot in (IMAGE, VIDEO)}

    def fill(parts: Sequence[str | Slot | MediaItem]) -> Iterator[str | Slot | MediaItem]:
        for part in parts:
            yield next(left[VIDEO if clips else part]) if isinstance(part, Slot) else part

    return [RawTurn(turn.role, tuple(fill(turn.parts))) for turn in turns]


def _in_front(turns: list[RawTurn], fields: list[MediaItem], where: str) -> list[RawTurn]:
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    asked = RawTurn("user", (*fields, *turns[first].parts))
    return [*turns[:first], asked, *turns[first + 1 :]]


def _mismatch(places: list[Slot], shown: list[Slot], named: bool, where: str) -> DataError:
    def of(slots: Sequence[Slot]) -> str:
        found = Counter(slot.kind for slot in slots)
        return ", ".join(f"{found[kind]} {kind}{'s' * (found[kind] != 1)}" for kind in ("image", "video"))

    beside = ", beside those that the messages name themselves" if named else ""
    return DataError(
        "the prompt and the record name different numbers of media",
        where=where,
        given=f"places in the prompt for {of(places)}; in the media fields {of(shown)}{beside}",
        expected="one medium for every <image> and <video> (or none of these: then media stand in front)",
        fix="repair the record (media=false reads records as text only)",
    )
