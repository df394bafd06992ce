"""One record of the full layout (`data.jsonl`): a query with all its responses, ranked.

`{"id", "image"|"images"|"video", "prompt", "category", "responses": [{"text", "rank", "scores", "reasons",
"critiques", "model"}], "pairs", "meta"}`; only id, prompt and the responses' texts are required.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmrlhf.records.fields import (
    PROMPT,
    MediaRef,
    check_responses,
    media_fields,
    number_map,
    optional_text,
    pick,
    rank_field,
    strip_placeholders,
    text_field,
    text_map,
    wrong_type,
)
from mmrlhf.records.json_text import Row
from mmrlhf.records.pair_ranks import Pair, Ranking, rank_from_pairs
from mmrlhf.types import Response

_TEXT = ("text", "response", "answer")
_MODEL = ("model", "model_name")
_SCORES, _REASONS, _CRITIQUES = ("scores", "score"), ("reasons", "reason"), ("critiques", "critique")
_RANK = ("rank", "ranking", "overall_rank")
_RECORD_FIELDS = frozenset(
    PROMPT
    + ("id", "question_id", "image", "images", "video", "category", "responses", "pairs", "meta", "source", "licence")
)
_RESPONSE_FIELDS = frozenset(_TEXT + _MODEL + _SCORES + _REASONS + _CRITIQUES + _RANK)


@dataclass(frozen=True)
class RankedRecord:
    """What a record says, checked; `notes` counts what was changed, `problems` names contradictions."""

    prompt: str
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...] | None
    images: tuple[MediaRef, ...]
    video: MediaRef | None
    category: str | None
    meta: Mapping[str, Any]
    notes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def parse_ranked(row: Row, where: str) -> RankedRecord:
    """Check one record and put it into the project's types.

    Responses with the same text are merged into one. Where they had different ranks that is a contradiction, and all
    their pairs are kept. Fields that nobody knows are left out and counted.

    Raises:
        DataError: a required field is missing, or a field has another structure.
    """
    prompt, placeholders = strip_placeholders(text_field(row, PROMPT, where))
    images, video = media_fields(row, where)
    given = _responses(row, where)
    pairs = _explicit_pairs(row, len(given), where)
    meta = _meta(row, where)
    responses, ranking = _merge(given, pairs)
    notes = Counter({f"ignored field: {name}": 1 for name in row.keys() - _RECORD_FIELDS})
    for item in row["responses"]:
        notes.update(f"ignored field: responses.{name}" for name in item.keys() - _RESPONSE_FIELDS)
    notes["placeholders stripped"] = placeholders
    notes["repeated responses merged"] = len(given) - len(responses)
    return RankedRecord(
        prompt, responses, ranking.pairs, images, video, optional_text(row, ("category",), where), meta,
        {name: count for name, count in notes.items() if count}, ranking.problems,
    )  # fmt: skip


def from_pair(row: Row, where: str) -> Row:
    """Turn a record of one pair, `chosen` and `rejected` texts, into a ranked one.

    Raises:
        DataError: a text is missing.
    """
    texts = [text_field(row, (name,), where) for name in ("chosen", "rejected")]
    tie = bool(row.get("is_tie"))
    responses = [{"text": text, "rank": 1 if tie else place} for place, text in enumerate(texts, start=1)]
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected", "is_tie")}
    return {**rest, "responses": responses}


def _responses(row: Row, where: str) -> list[Response]:
    value = row.get("responses")
    if not isinstance(value, list) or not value:
        raise wrong_type(where, "responses", value, f"a list with at least one response; fields found: {sorted(row)}")
    check_responses(len(value), f"{where}:responses")
    found = []
    for number, item in enumerate(value):
        place = f"{where}:responses[{number}]"
        if not isinstance(item, dict):
            raise wrong_type(where, f"responses[{number}]", item, "an object with a text")
        found.append(
            Response(
                text=text_field(item, _TEXT, place),
                rank=rank_field(item, place),
                critiques=text_map(item, _CRITIQUES, "full", place),
                scores=number_map(item, _SCORES, "overall", place),
                reasons=text_map(item, _REASONS, "overall", place),
                model=optional_text(item, _MODEL, place),
            )
        )
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


def _merge(given: list[Response], pairs: list[Pair] | None) -> tuple[tuple[Response, ...], Ranking]:
    """Join responses of the same text; ranks stay as given where nothing is merged and no pairs are explicit."""
    row_of = {text: row for row, text in enumerate(dict.fromkeys(response.text for response in given))}
    if len(row_of) == len(given) and pairs is None:
        return tuple(given), Ranking(None, None)
    place = [row_of[response.text] for response in given]
    if pairs is None:
        ranked = [(response.rank, row) for response, row in zip(given, place, strict=True) if response.rank is not None]
        above = [(a, b) for rank_a, a in ranked for rank_b, b in ranked if rank_a < rank_b]
        knows_rank = {row for _, row in ranked}
    else:
        above = [(place[chosen], place[rejected]) for chosen, rejected in pairs]
        knows_rank = set(place)
    ranking = rank_from_pairs(len(row_of), [pair for pair in above if pair[0] != pair[1]])
    ranks = ranking.ranks or (None,) * len(row_of)
    merged = tuple(
        replace(
            _join([response for response in given if response.text == text]),
            rank=ranks[row] if row in knows_rank else None,
        )
        for text, row in row_of.items()
    )
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
