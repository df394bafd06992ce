"""What is asked: a conversation of turns, whose parts (text, places of media) stand in their order.

The media themselves are no part of it: a query holds them as one flat tuple, in the order of the places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
SlotKind = Literal["image", "video"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Slot:
    """The place of one medium: a picture, or a video (a file of one, or its frames)."""

    kind: SlotKind

    def __str__(self) -> str:
        return f"<{self.kind}>"


IMAGE, VIDEO = Slot("image"), Slot("video")
Part = str | Slot


@dataclass(frozen=True)
class Turn:
    """What one side says: texts and places of media, in their order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Places of media, in their order."""
        return tuple(part for part in self.parts if isinstance(part, Slot))

    @property
    def text(self) -> str:
        """The turn as people read it: `<image>` where one stands between or behind words, nothing where all lead."""
        words = next((place for place, part in enumerate(self.parts) if isinstance(part, str)), len(self.parts))
        return "".join(map(str, self.parts[words:]))


@dataclass(frozen=True)
class Conversation:
    """A query: a system turn, earlier questions and their answers, if any, and last the user's turn to be answered."""

    turns: tuple[Turn, ...]

    @classmethod
    def about(cls, text: str, slots: Iterable[Slot] = ()) -> Conversation:
        """One user's turn: the media in front, then the text."""
        return cls((Turn("user", (*slots, text)),))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Places of media, in their order."""
        return tuple(slot for turn in self.turns for slot in turn.slots)

    @property
    def question(self) -> str:
        """The last turn's text (`Turn.text`): what reports show, and what an answer is an answer to."""
        return self.turns[-1].text if self.turns else ""

    @property
    def transcript(self) -> str:
        """Everything as people read it: the text of a single turn, else a line for each turn with its role."""
        if len(self.turns) == 1:
            return self.question
        return "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in self.turns)

    @property
    def num_chars(self) -> int:
        """Characters of all texts."""
        return sum(len(part) for turn in self.turns for part in turn.parts if isinstance(part, str))

    @property
    def plain(self) -> str | None:
        """The text, where the conversation is one user's turn of media and then one text; else None."""
        if len(self.turns) != 1 or self.turns[0].role != "user":
            return None
        *before, text = self.turns[0].parts or (None,)
        return text if isinstance(text, str) and all(isinstance(part, Slot) for part in before) else None

    @property
    def form(self) -> str:
        """Roles and kinds of parts, such as `system:t user:itit`; empty for a plain one (`plain`)."""
        if self.plain is not None:
            return ""
        return " ".join(
            f"{turn.role}:" + "".join("t" if isinstance(part, str) else part.kind[0] for part in turn.parts)
            for turn in self.turns
        )

    def with_texts(self, change: Callable[[str], str]) -> Conversation:
        """The same with every text changed."""
        return Conversation(
            tuple(replace(t, parts=tuple(p if isinstance(p, Slot) else change(p) for p in t.parts)) for t in self.turns)
        )

    def showing(self, shown: Sequence[tuple[Slot, ...]]) -> Conversation:
        """The same with other places instead of each: a clip's frames where pictures stand for it, for one."""
        instead = iter(shown)
        turns = []
        for turn in self.turns:
            parts = (next(instead) if isinstance(part, Slot) else (part,) for part in turn.parts)
            turns.append(replace(turn, parts=tuple(each for part in parts for each in part)))
        return Conversation(tuple(turns))

    def without_media(self) -> Conversation:
        """The same in words alone."""
        turns = (
            replace(turn, parts=tuple(p for p in turn.parts if isinstance(p, str)) or ("",)) for turn in self.turns
        )
        return Conversation(tuple(turns))

    def to_record(self) -> str | list[dict[str, Any]]:
        """What stands for it in JSON: the text of a plain one, whose media say what is in front; else its messages."""
        if self.plain is not None:
            return self.plain
        return [{"role": turn.role, "content": [_part_record(part) for part in turn.parts]} for turn in self.turns]

    @classmethod
    def from_record(cls, record: str | Sequence[Mapping[str, Any]], slots: Sequence[Slot]) -> Conversation:
        """The inverse of `to_record`, for media of these kinds; raises ValueError for what it would not write."""
        if isinstance(record, str):
            return cls.about(record, slots)
        try:
            turns = tuple(Turn(turn["role"], tuple(map(_part, turn["content"]))) for turn in record)
        except (TypeError, KeyError) as error:
            raise ValueError("not the messages of a conversation") from error
        found = cls(turns)
        if not turns or any(turn.role not in ROLES for turn in turns) or found.slots != tuple(slots):
            raise ValueError("turns of unknown roles, or other places than there are media")
        return found


def _part_record(part: Part) -> dict[str, str]:
    return {"type": part.kind} if isinstance(part, Slot) else {"type": "text", "text": part}


def _part(record: Mapping[str, Any]) -> Part:
    if record["type"] == "text" and isinstance(record["text"], str):
        return record["text"]
    if record["type"] not in ("image", "video"):
        raise ValueError("a part that is no text, image or video")
    return Slot(record["type"])
