"""Pairs that are written as conversations (LLaVA, ShareGPT, TRL), brought into a prompt, chosen and rejected texts.

The prompt stays a list of messages where it is more than one text (`mmrlhf.records.query_form` reads it): a system
turn, earlier questions and answers, parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mmrlhf.errors import DataError
from mmrlhf.records.fields import PROMPT, pick, wrong_type
from mmrlhf.records.json_text import Row
from mmrlhf.records.messages import read_turns

Preferred = Literal["a", "b"]
Messages = list[Any]

_PROMPT = (*PROMPT, "conversations", "messages")
_TWO = ("conversations_a", "conversations_b")
_CHOICES = {"a": "a", "b": "b", "1": "a", "2": "b", "tie": "tie"}


def is_pair(row: Mapping[str, Any]) -> bool:
    """Say whether a record compares two answers (rather than listing ranked ones)."""
    return "chosen" in row or _TWO[0] in row


def as_pair(row: Row, where: str, preferred: Preferred | None = None) -> Row:
    """Return the record with `prompt` (a text or messages), `chosen` and `rejected` (texts); other fields stay.

    Understood are: texts; messages or lists of messages in their place, with the prompt's turns in front of the answers
    or not; a prompt under `conversations` or `messages`; and two whole conversations under `conversations_a` and
    `conversations_b`, of which `preference` ("a", "b", 1, 2 or "tie") says which is better.

    Args:
        preferred: which of two conversations is better where `preference` is absent.

    Raises:
        DataError: another structure, different prompts, media in an answer.
    """
    if any(name in row for name in _TWO):
        return _two_conversations(row, where, preferred)
    name, value = pick(row, _PROMPT)
    answers = {field: row.get(field) for field in ("chosen", "rejected")}
    if isinstance(value, str) and all(isinstance(answer, str) for answer in answers.values()):
        return row
    prompt = None if value is None else _messages(value, where, name, "user")
    found = dict(row)
    for field, answer in answers.items():
        if isinstance(answer, str) or answer is None:
            continue  # a missing one is named by whoever reads the texts
        messages = _messages(answer, where, field, "assistant")
        prompt, found[field] = _answer(messages, prompt, where, field)
    for other in ("conversations", "messages"):
        if other == name:
            del found[other]
    return found if prompt is None else {**found, "prompt": _simplest(prompt)}


def _two_conversations(row: Row, where: str, preferred: Preferred | None) -> Row:
    prompt, texts = None, []
    for name in _TWO:
        prompt, text = _answer(_messages(row.get(name), where, name, "assistant"), prompt, where, name)
        texts.append(text)
    choice = _CHOICES.get(str(row.get("preference", preferred)).lower())
    if choice is None:
        raise wrong_type(where, "preference", row.get("preference"), "a, b, 1, 2 or tie (or set importer.preferred)")
    chosen, rejected = reversed(texts) if choice == "b" else texts
    found = {name: value for name, value in row.items() if name not in (*_TWO, "preference")}
    return {**found, "prompt": _simplest(prompt), "chosen": chosen, "rejected": rejected} | (
        {"is_tie": True} if choice == "tie" else {}
    )


def _answer(messages: Messages, prompt: Messages | None, where: str, name: str) -> tuple[Messages, str]:
    """(prompt, answer) of messages that are an answer alone, or the conversation so far and its answer."""
    turns = read_turns(messages, where, name)
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            "conversation does not end with an answer", where=f"{where}:{name}", given=[turn.role for turn in turns]
        )
    if turns[-1].shows_media:
        raise DataError(
            "an answer has media inside",
            where=f"{where}:{name}",
            given=turns[-1].text[:80],
            expected="answers of text; media that an answer alone was given to stand beside it (docs/data.md)",
        )
    if len(turns) > 1:
        before = messages[:-1]
        if prompt is not None and turns[:-1] != read_turns(prompt, where, name):
            asked = turns[-2].text[:80]
            raise DataError("the two answers belong to different prompts", where=f"{where}:{name}", given=asked)
        prompt = before
    if prompt is None:
        expected = "a user's turn before the answer"
        raise DataError("conversation lacks a question", where=f"{where}:{name}", expected=expected)
    return prompt, turns[-1].text


def _messages(value: Any, where: str, name: str, role: Literal["user", "assistant"]) -> Messages:
    """The messages of a field, checked; a text by itself is a message of `role`."""
    read_turns(value, where, name, role)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [value] if isinstance(value, Mapping) else value


def _simplest(prompt: Messages | None) -> str | Messages | None:
    """The text of a prompt that is one user's text, else its messages."""
    turns = read_turns(prompt, "", "prompt") if prompt else []
    content = pick(prompt[0], ("content", "value"))[1] if prompt else None
    alone = [turn.role for turn in turns] == ["user"]
    only = content[0] if isinstance(content, list) and len(content) == 1 else None
    if alone and isinstance(only, Mapping) and isinstance(only.get("text"), str):
        return content[0]["text"]
    return content if alone and isinstance(content, str) else prompt
