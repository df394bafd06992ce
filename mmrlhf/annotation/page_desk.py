"""What the annotation page asks for: the next query of an annotator, its media, and a place for what is said about it.

Answers have an order of their own for every annotator, and letters instead of names; nothing of a query but its words
and media leaves this desk.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from mmrlhf.annotation.assignments import Plan, shown_order
from mmrlhf.annotation.browser_media import Shown, kinds_of, shown_media
from mmrlhf.annotation.filled_forms import DIMENSIONS, LEVELS, Form, form_of
from mmrlhf.annotation.form_store import FormStore
from mmrlhf.annotation.queries_to_ask import QueriesToAsk
from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.reporting.sample_cards import response_letter
from mmrlhf.serving.refusals import Refusal
from mmrlhf.text import one_line
from mmrlhf.types import PreferenceGroup

PROBLEM = "problem"
RESERVED = 1800.0  # seconds that a query stays with an annotator who says nothing about it
_LONGEST_NAME, _LONGEST_TEXT, _KEPT = 60, 4000, 24
SETTINGS = {"dimensions": DIMENSIONS, "levels": LEVELS, "problem": PROBLEM}


@dataclass
class Desk:
    """Hands out queries and takes forms; one request at a time.

    Args:
        queries, plan: what is asked, and of whom.
        store: where forms are kept.
        by: the annotators of this round, whose forms alone count in it; empty: everybody.
    """

    queries: QueriesToAsk
    plan: Plan
    store: FormStore
    by: frozenset[str] = frozenset()
    _reserved: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        everything = (*self.plan.keys, *self.plan.gold)
        self._keys = {_token(key): key for key in everything}
        self._read = lru_cache(_KEPT)(self.queries.read)
        self._media = lru_cache(_KEPT)(self._decode)

    def next(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The query that an annotator has begun, or the next one; none where nothing is left."""
        name = self._annotator(body)
        done = self._done()
        mine = (key for key, who in self.store.drafts() if who == name and self._is_open(key))
        begun = [key for key in mine if name not in done.get(key, ())]
        key = begun[0] if begun else self._next_key(name, done)
        return self._page(name, key)

    def back(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The query that an annotator submitted before this one, or last."""
        name = self._annotator(body)
        history = [key for key in self.store.history(name) if self._is_open(key)]
        now = self._keys.get(str(body.get("query")))
        before = history[: history.index(now)] if now in history else history
        if not before:
            raise Refusal(409, "first", "there is no query before this one")
        return self._page(name, before[-1])

    def save(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a form, on the disk before this returns; answers with the next query where it is submitted."""
        name, key = self._annotator(body), self._key(body.get("query"))
        form = self._form(name, key, body)
        if not body.get("submit"):
            self.store.keep_draft(form)
            self._reserve(key, name)
            return {}
        lacking = _lacking(form)
        if lacking:
            raise Refusal(422, "incomplete", lacking, field="form")
        self.store.submit(form)
        self._reserved.get(key, {}).pop(name, None)  # of a query that is asked twice, the other one's stays
        return self.next(body)

    def medium(self, token: str, number: int, annotator: str) -> Shown:
        """A picture or clip of a query, or behind these of its answers as they stand before an annotator."""
        shown = self._media(self._key(token), annotator)
        if not 0 <= number < len(shown):
            raise Refusal(404, "unknown", "no such picture or clip")
        return shown[number]

    def left(self) -> int:
        """How many forms are still wanted."""
        return self.plan.left(self._done(), self.queries.refused)

    def _done(self) -> dict[str, set[str]]:
        """Key -> who has submitted a form that counts in this round."""
        done = self.store.done()
        return {key: names & self.by for key, names in done.items()} if self.by else done

    def _annotator(self, body: Mapping[str, Any]) -> str:
        name = _annotator(body)
        if self.by and name not in self.by:
            raise Refusal(403, "not_asked", f"these queries are for {', '.join(sorted(self.by))}", field="annotator")
        return name

    def _next_key(self, name: str, done: Mapping[str, set[str]]) -> str | None:
        now = time.monotonic()
        reserved = {
            key: {who for who, since in each.items() if now - since < RESERVED} for key, each in self._reserved.items()
        }
        while (key := self.plan.next_key(name, done, reserved, self.queries.refused)) is not None:
            try:
                self._read(key)
            except DataError as error:
                self.queries.refuse(key, error.problem)
                continue
            self._reserve(key, name)
            return key
        return None

    def _reserve(self, key: str, name: str) -> None:
        self._reserved.setdefault(key, {})[name] = time.monotonic()

    def _is_open(self, key: str) -> bool:
        return _token(key) in self._keys and key not in self.queries.refused

    def _key(self, token: Any) -> str:
        key = self._keys.get(str(token))
        if key is None:
            raise Refusal(404, "unknown", "no such query")
        return key

    def _page(self, name: str, key: str | None) -> dict[str, Any]:
        wanted = sum(self.plan.wanted(key) for key in self.plan.keys if key not in self.queries.refused)
        progress = {"wanted": wanted, "left": self.left(), "mine": len(self.store.history(name))}
        return {"progress": progress, "query": None if key is None else self._query(name, key)}

    def _query(self, name: str, key: str) -> dict[str, Any]:
        group, token = self._read(key), _token(key)
        order, reader = _order(group, name), quote(name, safe="")
        videos = [*kinds_of(group.media), *(kind for p in order for kind in kinds_of(group.responses[p].media))]
        media = iter([{"url": f"media/{token}/{n}?for={reader}", "video": v} for n, v in enumerate(videos)])
        counts = [len(each.names) for each in group.media]
        turns = _turns(group.prompt, [[next(media) for _ in range(count)] for count in counts])
        answers = [
            {"letter": response_letter(number), "text": group.responses[place].text,
             "media": [next(media) for each in group.responses[place].media for _ in each.names]}
            for number, place in enumerate(order)
        ]  # fmt: skip
        form = self.store.last(key, name)
        return {
            "token": token, "turns": turns, "answers": answers, "form": _as_shown(form, order),
            "seconds": form.seconds or 0.0 if form else 0.0,
        }  # fmt: skip

    def _decode(self, key: str, annotator: str) -> list[Shown]:
        group = self._read(key)
        own = [each for place in _order(group, annotator) for each in shown_media(group, group.responses[place])]
        return [*shown_media(group), *own]

    def _form(self, name: str, key: str, body: Mapping[str, Any]) -> Form:
        """The body's form, whose answers are in the order in which they were shown, in that of the responses."""
        group, said = self._read(key), body.get("form")
        order = _order(group, name)
        if not isinstance(said, Mapping):
            raise Refusal(422, "no_form", "a form is missing", field="form")
        row: dict[str, Any] = {
            "key": key, "annotator": name, "hashes": [response.hash for response in group.responses], "tool": "page",
            "origin": self.store.path.name, "at": time.time(), "seconds": body.get("seconds"),
            "problem": said.get("problem", ""), "ranks": _by_response(said.get("ranks"), order),
        }  # fmt: skip
        for kind in ("scores", "reasons"):
            table = said.get(kind)
            table = table if isinstance(table, Mapping) else {}
            row[kind] = {dimension: _by_response(table.get(dimension), order) for dimension in DIMENSIONS}
        try:
            form = form_of(row, where="form")
        except DataError as error:
            problem = f"given {error.given}, expected {error.expected}"
            raise Refusal(422, "no_form", problem, field=str(error.where)) from error
        texts = (form.problem, *(text for texts in form.reasons.values() for text in texts))
        if any(rank is not None and rank > len(order) for rank in form.ranks) or max(map(len, texts)) > _LONGEST_TEXT:
            raise Refusal(422, "no_form", f"places up to {len(order)}, texts up to {_LONGEST_TEXT}", field="form")
        return replace(form, scores={name: tuple(map(_whole, scores)) for name, scores in form.scores.items()})


def _order(group: PreferenceGroup, annotator: str) -> tuple[int, ...]:
    return shown_order(group.key, [response.hash for response in group.responses], annotator)


def _turns(prompt: Conversation, media: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Turns with parts in their order: `text`, or a picture's or clip's `url`."""
    left = iter(media)
    turns = []
    for turn in prompt.turns:
        parts = [[{"text": part}] if isinstance(part, str) else next(left, []) for part in turn.parts]
        turns.append({"role": turn.role, "parts": [each for part in parts for each in part]})
    return turns


def _as_shown(form: Form | None, order: Sequence[int]) -> dict[str, Any]:
    """A form, or an empty one, with its answers in the order in which they are shown."""
    size = len(order)
    ranks = [form.ranks[place] for place in order] if form else [None] * size
    scores = {name: form.scores.get(name, [None] * size) if form else [None] * size for name in DIMENSIONS}
    reasons = {name: form.reasons.get(name, [""] * size) if form else [""] * size for name in DIMENSIONS}
    return {
        "ranks": ranks, "problem": form.problem if form else "",
        "scores": {name: [row[place] for place in order] for name, row in scores.items()},
        "reasons": {name: [row[place] for place in order] for name, row in reasons.items()},
    }  # fmt: skip


def _by_response(shown: Any, order: Sequence[int]) -> Any:
    if not isinstance(shown, list) or len(shown) != len(order):
        return shown
    return [value for _, value in sorted(zip(order, shown, strict=True), key=lambda pair: pair[0])]


def _whole(score: float | None) -> int | None:
    if score is not None and score % 1:
        raise Refusal(422, "no_form", f"whole scores from 1 to {LEVELS}", field="form.scores")
    return None if score is None else int(score)


def _lacking(form: Form) -> str:
    """What a form needs before it can be submitted; nothing where it says that something is wrong with the query."""
    if form.problem:
        return ""
    if None in form.ranks:
        return "an answer has no place yet"
    return next((f"an answer has no {name} yet" for name, scores in form.scores.items() if None in scores), "")


def _annotator(body: Mapping[str, Any]) -> str:
    name = body.get("annotator")
    name = one_line(name).strip() if isinstance(name, str) else ""
    if not name or len(name) > _LONGEST_NAME:
        raise Refusal(422, "no_name", f"a name of 1 to {_LONGEST_NAME} characters", field="annotator")
    return name


def _token(key: str) -> str:
    """What stands for a query on the page: its key may tell what it is."""
    return hashlib.sha256(f"query\0{key}".encode()).hexdigest()[:20]
