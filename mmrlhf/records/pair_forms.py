"""Every way to write that one answer is better than another, brought into the full layout: a prompt, ranked responses.

The prompt is a text or messages, under any of its names, or stands in front of the answers; an instruction has its
`input`, a `system` text and a `history`. Answers are texts, messages or whole conversations: `chosen` and `rejected`
(TRL, LLaMA-Factory, the Hugging Face hub), the end of the prompt's own messages and `rejected_response`,
`rejected_messages` or `rejected_conversations` (ms-swift, POVID), or `conversations_a` and `conversations_b`
(InternLM-XComposer, LLaVA). Media that one answer alone was given to are its own. What a record says beside that stays
as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrlhf.errors import DataError
from mmrlhf.records.fields import PROMPT, optional_text, pick, wrong_type
from mmrlhf.records.json_text import Row
from mmrlhf.records.messages import RawTurn, read_turns

Preferred = Literal["a", "b"]
Messages = list[Any]

ID = ("id", "question_id", "idx")
CATEGORY = ("category", "origin_dataset")
_ASKED = (*PROMPT, "messages", "conversations")
_REJECTED = ("rejected", "rejected_response", "rejected_messages", "rejected_conversations")
_TWO = ("conversations_a", "conversations_b")
_CHOICES = {"a": "a", "b": "b", "1": "a", "2": "b", "tie": "tie"}
_OWN_MEDIA = ("images", "image", "videos", "video")
# What belongs to a question and has no place in a record of this project: a record that says it is left out whole.
_UNREAD = ("tools", "objects", "rejected_tools", "rejected_audios", "rejected_audio")


@dataclass
class _Answer:
    """One side of a comparison; `before` are the messages that stood in front of it."""

    text: str
    before: Messages
    extra: Row = field(default_factory=dict)


def is_pair(row: Mapping[str, Any]) -> bool:
    """Say whether a record compares answers (rather than listing ranked ones)."""
    return any(name in row for name in ("chosen", *_REJECTED, *_TWO, "rejected_images", "rejected_image"))


def ranked_pair(row: Row, where: str, preferred: Preferred | None = None) -> Row:
    """Return the record in the full layout: the better response has rank 1, others 2; ties share rank 1.

    Args:
        preferred: which of two conversations is better where `preference` is absent.

    Raises:
        DataError: another structure, different prompts, media inside of an answer, several prompts, or something that
            belongs to the question and cannot be read (tools, boxes).
    """
    left = dict(row)
    for name in _UNREAD:
        if left.pop(name, None):
            raise DataError(
                "record says what cannot be read", where=f"{where}:{name}", given=str(row[name])[:80],
                expected="a question of texts, pictures and clips",
            )  # fmt: skip
    tie = _is_tie(left, where)
    asked = None
    if any(name in row for name in _TWO):
        chosen, others, tie = _two_conversations(left, where, preferred)
    else:
        asked = _asked(left, where)
        chosen, others = _chosen_and_others(left, asked, where)
    if asked is None or chosen.before:
        asked = _one_prompt([*([] if asked is None else [asked]), chosen.before], where)
    asked = _one_prompt([asked, *(other.before for other in others if other.before)], where)
    _own_media(left, chosen, others)
    for number, answer in enumerate((chosen, *others)):
        answer.extra |= _said_of(left, "rejected" if number else "chosen", where)
    responses = [
        {"text": answer.text, "rank": 1 if tie or not number else 2, **answer.extra}
        for number, answer in enumerate((chosen, *others))
    ]
    return {**_renamed(left, ID, "id"), "prompt": _with_history(left, asked, where), "responses": responses}


def _is_tie(left: Row, where: str) -> bool:
    value = left.pop("is_tie", None)
    if value not in (None, 0, 1):
        raise wrong_type(where, "is_tie", value, "true or false")
    return bool(value)


def _two_conversations(left: Row, where: str, preferred: Preferred | None) -> tuple[_Answer, list[_Answer], bool]:
    answers = [_answer(left.pop(name, None), where, name) for name in _TWO]
    given = left.pop("preference", None)
    choice = _CHOICES.get(str(preferred if given is None else given).lower())
    if choice is None:
        raise wrong_type(where, "preference", given, "a, b, 1, 2 or tie (or set importer.preferred)")
    chosen, rejected = reversed(answers) if choice == "b" else answers
    return chosen, [rejected], choice == "tie"


def _asked(left: Row, where: str) -> Messages | None:
    """The messages of the prompt, which the first field that has one says; a second one has to say the same."""
    names = [name for name in _ASKED if left.get(name) is not None]
    values = [_messages(left.pop(name), where, name, "user") for name in names]
    text = left.get("input")
    if text is not None and not isinstance(text, str):
        raise wrong_type(where, "input", text, "text")
    if text and names != ["instruction"]:
        raise DataError(
            "record says what cannot be read", where=f"{where}:input", given=text[:80],
            expected="an input beside an instruction, and beside no other prompt",
        )  # fmt: skip
    if left.pop("input", None):
        [instruction] = values[0]
        values = [[{"role": "user", "content": f"{instruction['content']}\n{text}".strip("\n")}]]
    read = [_turns(value, where) for value in values]
    for name, turns in zip(names[1:], read[1:], strict=False):
        # beside the prompt there may be the better answer, and no further question
        more = [turn.role for turn in turns[len(read[0]) :]]
        if turns[: len(read[0])] != read[0] or more not in ([], ["assistant"]):
            raise DataError(
                "record has several prompts", where=f"{where}:{name}", given=f"{names[0]} and {name} differ",
                expected="one prompt, or twice the same",
            )  # fmt: skip
    return values[0] if values else None


def _chosen_and_others(left: Row, asked: Messages | None, where: str) -> tuple[_Answer, list[_Answer]]:
    """The better answer, which may be the end of the prompt's messages, and the worse ones."""
    if left.get("chosen") is not None:
        chosen = _answer(left.pop("chosen"), where, "chosen")
    elif asked and _turns(asked, where)[-1].role == "assistant":
        chosen = _answer(asked, where, "messages")
        del asked[-1]
    else:
        raise _no_answer(left, "chosen", where)
    name, value = pick(left, _REJECTED)
    left.pop(name, None)
    if value is None and any(left.get(f"rejected_{name}") for name in _OWN_MEDIA):
        return chosen, [_Answer(chosen.text, [])]  # the same words about other media
    if value is None:
        raise _no_answer(left, "rejected", where)
    several = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return chosen, [_answer(item, where, name) for item in (value if several else [value])]


def _no_answer(left: Row, name: str, where: str) -> DataError:
    return DataError(
        f"record lacks the field {name!r}", where=f"{where}:{name}", given=f"fields {sorted(left)}",
        expected=" or ".join(_REJECTED) if name == "rejected" else "chosen, or messages that end with an answer",
    )  # fmt: skip


def _answer(value: Any, where: str, name: str) -> _Answer:
    """An answer that is a text, a message, or the end of a conversation."""
    messages = _messages(value, where, name, "assistant")
    turns = _turns(messages, where, name)
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            "conversation does not end with an answer", where=f"{where}:{name}", given=[turn.role for turn in turns]
        )
    if turns[-1].shows_media:
        raise DataError(
            "an answer has media inside",
            where=f"{where}:{name}", given=turns[-1].text[:80],
            expected="answers of text; media that an answer alone was given to stand beside it (docs/data.md)",
        )  # fmt: skip
    return _Answer(turns[-1].text, list(messages[:-1]))


def _one_prompt(prompts: Sequence[Messages], where: str) -> Messages:
    """The prompt that all of these are."""
    first = _turns(prompts[0], where)
    for other in prompts[1:]:
        if (turns := _turns(other, where)) != first:
            shown = turns[-1].text if turns else ""
            raise DataError("the two answers belong to different prompts", where=where, given=shown[:80])
    if not first:
        raise DataError(
            "conversation lacks a question",
            where=f"{where}:prompt", expected=f"{' or '.join(_ASKED)}, or a user's turn before the answers",
        )  # fmt: skip
    return prompts[0]


def _own_media(left: Row, chosen: _Answer, others: Sequence[_Answer]) -> None:
    """Give each answer what it alone was given to: the record's media are the chosen one's where the others' differ."""
    for name in _OWN_MEDIA:
        own = {side: left.pop(f"{side}_{name}", None) for side in ("chosen", "rejected")}
        shared = left.get(name)
        if not any(own.values()) or (own["rejected"] == shared and not own["chosen"]):
            continue
        chosen.extra[name] = own["chosen"] or shared
        for other in others:
            other.extra[name] = own["rejected"] or shared
        left.pop(name, None)


def _said_of(left: Row, side: str, where: str) -> Row:
    """What a record says of one answer: a reason, which is its short critique too, a score, a model."""
    found: Row = {}
    if reason := optional_text(left, (f"{side}_reason",), where):
        found |= {"reasons": {"overall": reason}, "critiques": {"short": reason}}
    name, score = pick(left, (f"{side}_score", f"score_{side}"))
    if isinstance(score, int | float) and not isinstance(score, bool):
        found["scores"] = {"overall": score}
        left.pop(name)
    if model := optional_text(left, (f"{side}_model",), where):
        found["model"] = model
    left.pop(f"{side}_reason", None)
    left.pop(f"{side}_model", None)
    return found


def _renamed(left: Row, names: Sequence[str], name: str) -> Row:
    """The record with its id and category under the names of the full layout."""
    found = dict(left)
    for target, aliases in ((name, names), ("category", CATEGORY)):
        spelled, value = pick(found, aliases)
        if value is not None:
            del found[spelled]
            found[target] = value
    return {key: value for key, value in found.items() if key not in ("system", "history")}


def _with_history(left: Row, asked: Messages, where: str) -> str | Messages:
    """The prompt behind a system text and earlier questions; the text alone where there is no more to it."""
    history = left.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise wrong_type(where, "history", history, "a list of [question, answer]")
    before = [
        {"role": role, "content": text}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    if system := optional_text(left, ("system",), where):
        first = _turns(asked, where)[0]
        if first.role == "system" and first.text != system:
            raise DataError("record has two system texts", where=f"{where}:system", given=system[:80])
        before = ([] if first.role == "system" else [{"role": "system", "content": system}]) + before
    return _simplest([*before, *asked], where)


def _simplest(messages: Messages, where: str) -> str | Messages:
    """The text of a prompt that is one user's text, else its messages."""
    if [turn.role for turn in _turns(messages, where)] != ["user"]:
        return messages
    content = pick(messages[0], ("content", "value"))[1]
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("text")
    return content if isinstance(content, str) else messages


def _messages(value: Any, where: str, name: str, role: Literal["user", "assistant"]) -> Messages:
    """The messages of a field, checked; a text by itself is a message of `role`."""
    read_turns(value, where, name, role)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [value] if isinstance(value, Mapping) else list(value)


def _turns(messages: Messages, where: str, name: str = "prompt") -> list[RawTurn]:
    return read_turns(messages, where, name)
