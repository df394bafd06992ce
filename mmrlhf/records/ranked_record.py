"""One record of the full layout (`data.jsonl`): a query with all its responses, ranked.

`{"id", "image"|"images"|"video", "prompt", "category", "responses": [{"text", "rank", "scores", "reasons",
"critiques", "model"}], "pairs", "meta"}`; only id, prompt and the responses' texts are required. The prompt is a text
or a list of messages (`mmrlhf.records.query_form`). A response may have "image", "images" or "video" of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.records.fields import (
    MEDIA,
    PROMPT,
    MediaItem,
    check_responses,
    media_fields,
    number_map,
    optional_text,
    pick,
    rank_field,
    text_field,
    text_map,
    wrong_type,
)
from mmrlhf.records.json_text import Row
from mmrlhf.records.messages import count_placeholders
from mmrlhf.records.pair_ranks import Pair, Ranking, rank_from_pairs
from mmrlhf.records.query_form import AS_TEXT, Question, prompt_field, read_question
from mmrlhf.types import Response

_TEXT = ("text", "response", "answer")
_MODEL = ("model", "model_name")
_SCORES, _REASONS, _CRITIQUES = ("scores", "score"), ("reasons", "reason"), ("critiques", "critique")
_RANK = ("rank", "ranking", "overall_rank")
_RECORD_FIELDS = frozenset(
    PROMPT + MEDIA + ("id", "question_id", "category", "responses", "pairs", "meta", "source", "licence")
)
_RESPONSE_FIELDS = frozenset(_TEXT + _MODEL + _SCORES + _REASONS + _CRITIQUES + _RANK + MEDIA)


@dataclass(frozen=True)
class RankedRecord:
    """What a record says, checked; `notes` counts what was changed, `problems` names contradictions.

    `media` are those of the group, in the order of the prompt's places; `own_media` those of each response.
    """

    prompt: Conversation
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...] | None
    media: tuple[MediaItem, ...]
    own_media: tuple[tuple[MediaItem, ...], ...]
    category: str | None
    meta: Mapping[str, Any]
    notes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Answer:
    """One response and the media that it alone was given to."""

    response: Response
    media: tuple[MediaItem, ...]

    @property
    def content(self) -> tuple[str, ...]:
        return self.response.text, *(str(item.ref) for item in self.media)


def parse_ranked(row: Row, where: str, *, media: bool = True, answered: bool = True) -> RankedRecord:
    """Check one record and put it into the project's types.

    Responses with the same text (and media of their own) are merged into one. Where they had different ranks that is a
    contradiction, and all their pairs are kept. Fields that nobody knows are left out and counted.

    Args:
        media: false reads it as text only.
        answered: false lets it have no responses: a query that is still to be answered.

    Raises:
        DataError: a required field is missing, a field has another structure, or the prompt shows another number of
            media than there are.
    """
    prompt_field(row, where)
    given = _answers(row, where, media, answered)
    fields = media_fields(row, where)
    # Where all media are those of responses, the prompt's places are theirs.
    own = next((answer.media for answer in given if answer.media), ())
    question = read_question(row, fields or own, where, media=media)
    pairs = _explicit_pairs(row, len(given), where)
    answers, ranking = _merge(given, pairs)
    shared = question.media if fields or not own else ()
    if media:
        _check_own(question, shared, answers, where)
    return RankedRecord(
        question.conversation,
        tuple(answer.response for answer in answers),
        ranking.pairs,
        shared,
        tuple(answer.media for answer in answers),
        optional_text(row, ("category",), where),
        _meta(row, where),
        _notes(row, question, given, len(answers)),
        ranking.problems,
    )


def _notes(row: Row, question: Question, given: list[_Answer], num_answers: int) -> dict[str, int]:
    unread = [*sorted(row.keys() - _RECORD_FIELDS), *_beside(row, PROMPT)]
    notes = Counter(f"ignored field: {name}" for name in unread)
    for item in row.get("responses") or ():
        others = (
            name for names in (_TEXT, _MODEL, _SCORES, _REASONS, _CRITIQUES, _RANK) for name in _beside(item, names)
        )
        notes.update(f"ignored field: responses.{name}" for name in (*(item.keys() - _RESPONSE_FIELDS), *others))
    notes.update(question.notes)
    notes[AS_TEXT] += sum(count_placeholders(answer.response.text) for answer in given)
    notes["repeated responses merged"] = len(given) - num_answers
    return {name: count for name, count in notes.items() if count}


def _beside(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Of several names of one thing, those that say something else than the one that is read."""
    read, value = pick(row, names)
    return [name for name in names if name != read and row.get(name) not in (None, value)]


def _check_own(question: Question, shared: tuple[MediaItem, ...], answers: list[_Answer], where: str) -> None:
    """Every response is shown as many media of each kind as the prompt has places for, in their order."""
    places = [slot.kind for slot in question.conversation.slots]
    for number, answer in enumerate(answers):
        shown = [item.slot.kind for item in answer.media or shared]
        if shown != places:
            raise DataError(
                "a response has other media than the prompt has places for",
                where=f"{where}:responses[{number}]",
                given=f"{len(shown)} ({', '.join(shown) or 'none'})",
                expected=f"{len(places)} ({', '.join(places) or 'none'}), in this order",
                fix="give every response media of its own, or the record those of the others",
            )


def _answers(row: Row, where: str, media: bool, answered: bool) -> list[_Answer]:
    value = row.get("responses")
    if not answered and value in (None, []):
        return []
    if not isinstance(value, list) or not value:
        raise wrong_type(where, "responses", value, f"a list with at least one response; fields found: {sorted(row)}")
    check_responses(len(value), f"{where}:responses")
    found = []
    for number, item in enumerate(value):
        place = f"{where}:responses[{number}]"
        if not isinstance(item, dict):
            raise wrong_type(where, f"responses[{number}]", item, "an object with a text")
        response = Response(
            text=text_field(item, _TEXT, place),
            rank=rank_field(item, place),
            critiques=text_map(item, _CRITIQUES, "full", place),
            scores=number_map(item, _SCORES, "overall", place),
            reasons=text_map(item, _REASONS, "overall", place),
            model=optional_text(item, _MODEL, place),
        )
        found.append(_Answer(response, media_fields(item, place) if media else ()))
    return found


def _meta(row: Row, where: str) -> dict[str, Any]:
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise wrong_type(where, "meta", meta, "an object")
    try:
        json.dumps(meta)
    except TypeError as error:
        raise wrong_type(where, "meta", meta, "nothing but what JSON holds (no bytes)") from error
    return meta


def _explicit_pairs(row: Row, num_responses: int, where: str) -> list[Pair] | None:
    _, value = pick(row, ("pairs",))
    if value is None:
        return None
    if not isinstance(value, list):
        raise wrong_type(where, "pairs", value, "a list of [chosen, rejected] response numbers")
    for pair in value:
        numbers = isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)
        if not numbers or pair[0] == pair[1] or not all(0 <= number < num_responses for number in pair):
            raise wrong_type(where, "pairs", pair, f"two different response numbers below {num_responses}")
    return [(chosen, rejected) for chosen, rejected in value]


def _merge(given: list[_Answer], pairs: list[Pair] | None) -> tuple[list[_Answer], Ranking]:
    """Join equal responses; ranks stay as given where nothing is merged and no pairs are explicit."""
    row_of = {content: row for row, content in enumerate(dict.fromkeys(answer.content for answer in given))}
    if len(row_of) == len(given) and pairs is None:
        return given, Ranking(None, None)
    place = [row_of[answer.content] for answer in given]
    if pairs is None:
        ranks_given = [answer.response.rank for answer in given]
        ranked = [(rank, row) for rank, row in zip(ranks_given, place, strict=True) if rank is not None]
        above = [(a, b) for rank_a, a in ranked for rank_b, b in ranked if rank_a < rank_b]
        knows_rank = {row for _, row in ranked}
    else:
        above = [(place[chosen], place[rejected]) for chosen, rejected in pairs]
        knows_rank = set(place)
    ranking = rank_from_pairs(len(row_of), [pair for pair in above if pair[0] != pair[1]])
    ranks = ranking.ranks or (None,) * len(row_of)
    merged = []
    for content, row in row_of.items():
        same = [answer for answer in given if answer.content == content]
        joined = _join([answer.response for answer in same])
        merged.append(_Answer(replace(joined, rank=ranks[row] if row in knows_rank else None), same[0].media))
    itself = sorted({a for a, b in above if a == b})
    problems = tuple(f"response {row} occurs twice, once as better than the other time" for row in itself)
    return merged, replace(ranking, problems=ranking.problems + problems)


def _join(same: list[Response]) -> Response:
    """Put together what is known about one text; of two values under one name the first counts."""
    joined = same[0]
    for other in same[1:]:
        joined = replace(
            joined,
            critiques={**other.critiques, **joined.critiques},
            scores={**other.scores, **joined.scores},
            reasons={**other.reasons, **joined.reasons},
            model=joined.model or other.model,
        )
    return joined
