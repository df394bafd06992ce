"""Pairs that are written as conversations (LLaVA, ShareGPT, TRL), brought into plain prompt, chosen and rejected texts.

A message is `{"from": "human", "value": text}` or `{"role": "user", "content": text or parts}`. A group of this
project holds one question, so a conversation is one user turn and one answer; longer ones are refused, not cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmrlhf.errors import DataError
from mmrlhf.records.fields import PROMPT, pick, wrong_type
from mmrlhf.records.json_text import Row

Preferred = Literal["a", "b"]

_PROMPT = (*PROMPT, "conversations", "messages")
_TWO = ("conversations_a", "conversations_b")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_CHOICES = {"a": "a", "b": "b", "1": "a", "2": "b", "tie": "tie"}
_PLACEHOLDERS = {"image": "<image>", "video": "<video>"}


@dataclass(frozen=True)
class _Turn:
    role: str
    text: str


def is_pair(row: Mapping[str, Any]) -> bool:
    """Say whether a record compares two answers (rather than listing ranked ones)."""
    return "chosen" in row or _TWO[0] in row


def as_pair(row: Row, where: str, preferred: Preferred | None = None) -> Row:
    """Return the record with texts under `prompt`, `chosen` and `rejected`; other fields stay.

    Understood are: texts; messages or lists of messages in their place, with the prompt's turn in front of the answers
    or not; a prompt under `conversations` or `messages`; and two whole conversations under `conversations_a` and
    `conversations_b`, of which `preference` ("a", "b", 1, 2 or "tie") says which is better.

    Args:
        preferred: which of two conversations is better where `preference` is absent.

    Raises:
        DataError: another structure, several questions in a row, a system message, different prompts.
    """
    if any(name in row for name in _TWO):
        return _two_conversations(row, where, preferred)
    name, value = pick(row, _PROMPT)
    answers = {field: row.get(field) for field in ("chosen", "rejected")}
    if isinstance(value, str) and all(isinstance(answer, str) for answer in answers.values()):
        return row
    given = [] if value is None or isinstance(value, str) else _turns(value, where, name, "user")
    prompt = _one_question(given, f"{where}:{name}") if given else value
    found = dict(row)
    for field, answer in answers.items():
        if isinstance(answer, str) or answer is None:
            continue  # a missing one is named by whoever reads the texts
        prompt, found[field] = _answer(_turns(answer, where, field, "assistant"), prompt, f"{where}:{field}")
    if name in ("conversations", "messages"):
        del found[name]
    return found if prompt is None else {**found, "prompt": prompt}


def _two_conversations(row: Row, where: str, preferred: Preferred | None) -> Row:
    prompt, texts = None, []
    for name in _TWO:
        prompt, text = _answer(_turns(row.get(name), where, name, "assistant"), prompt, f"{where}:{name}")
        texts.append(text)
    choice = _CHOICES.get(str(row.get("preference", preferred)).lower())
    if choice is None:
        raise wrong_type(where, "preference", row.get("preference"), "a, b, 1, 2 or tie (or set importer.preferred)")
    chosen, rejected = reversed(texts) if choice == "b" else texts
    found = {name: value for name, value in row.items() if name not in (*_TWO, "preference")}
    return {**found, "prompt": prompt, "chosen": chosen, "rejected": rejected} | (
        {"is_tie": True} if choice == "tie" else {}
    )


def _answer(turns: list[_Turn], prompt: str | None, where: str) -> tuple[str, str]:
    """(prompt, answer) of turns that are an answer alone, or the question and its answer."""
    if not turns or turns[-1].role != "assistant":
        raise DataError("conversation does not end with an answer", where=where, given=[turn.role for turn in turns])
    if len(turns) > 1:
        question = _one_question(turns[:-1], where)
        if prompt is not None and question != prompt:
            raise DataError("the two answers belong to different prompts", where=where, given=question[:80])
        prompt = question
    if prompt is None:
        raise DataError("conversation lacks a question", where=where, expected="a user's turn before the answer")
    return prompt, turns[-1].text


def _one_question(turns: list[_Turn], where: str) -> str:
    if [turn.role for turn in turns] != ["user"]:
        raise DataError(
            "conversation is longer than one question",
            where=where, given=[turn.role for turn in turns], expected="one turn of a user, then one answer",
            fix="leave it out with on_bad_line=reject, or write the history into the prompt yourself",
        )  # fmt: skip
    return turns[0].text


def _turns(value: Any, where: str, name: str, role: str) -> list[_Turn]:
    """The turns of a conversation; a text by itself is a turn of `role`."""
    items = [{"role": role, "content": value}] if isinstance(value, str) else value
    items = [items] if isinstance(items, Mapping) else items
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise wrong_type(where, name, value, "a text, a message, or a list of messages")
    return [_turn(item, f"{where}:{name}[{number}]") for number, item in enumerate(items)]


def _turn(item: Mapping[str, Any], where: str) -> _Turn:
    name, role = pick(item, ("role", "from"))
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong_type(where, name, role, f"one of {', '.join(_ROLES)}")
    name, content = pick(item, ("content", "value"))
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise wrong_type(where, name, content, "a text or a list of parts")
    return _Turn(_ROLES[role], "".join(_part(part, f"{where}.{name}[{n}]") for n, part in enumerate(parts)))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(text, str):
        return text
    if isinstance(kind, str) and kind in _PLACEHOLDERS:
        return _PLACEHOLDERS[kind]
    raise wrong_type(where, "part", part, "a text, image or video")
