"""Records of one query put together: responses are told apart by their text, pairs become ranks where they can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mmrlhf.records.fields import MediaItem, check_responses
from mmrlhf.records.pair_ranks import Pair, rank_from_pairs
from mmrlhf.records.ranked_record import RankedRecord
from mmrlhf.types import Response

_Content = tuple[str, ...]


class MergedRecord:
    """One record made of several of the same query, which are added one by one; a single one stays as it is.

    Where their pairs contradict each other, or are only a partial order, they are kept as pairs.
    """

    def __init__(self, first: RankedRecord) -> None:
        self._first: RankedRecord = first
        self._num_records = 0
        self._places: dict[_Content, int] = {}
        self._responses: list[Response] = []
        self._own_media: list[tuple[MediaItem, ...]] = []
        self._pairs: dict[Pair, None] = {}
        self._ties: dict[Pair, None] = {}
        self._notes: Counter[str] = Counter()
        self._problems: list[str] = []
        self._meta: dict[str, Any] = {}

    def add(self, record: RankedRecord, where: str) -> None:
        """Put a record to the others; raises DataError if there are more responses then than can be compared."""
        content = [
            (response.text, *(str(item.ref) for item in own))
            for response, own in zip(record.responses, record.own_media, strict=True)
        ]
        check_responses(len(self._places.keys() | set(content)), where)
        self._num_records += 1
        here = [self._place(*each) for each in zip(content, record.responses, record.own_media, strict=True)]
        for said, given in ((self._pairs, _pairs_of(record)), (self._ties, _ties_of(record))):
            for i, j in given:
                self._notes["repeated pairs merged"] += (here[i], here[j]) in said
                said[here[i], here[j]] = None
        self._notes.update(record.notes)
        self._problems += record.problems
        self._meta = {**record.meta, **self._meta}
        if self._first.category is None and record.category is not None:
            self._first = replace(self._first, category=record.category)

    def result(self) -> RankedRecord:
        """What all say together."""
        if self._num_records <= 1:
            return self._first
        ranking = rank_from_pairs(len(self._places), self._pairs, self._ties)
        ranks = ranking.ranks or (None,) * len(self._places)
        # Ties follow from ranks; beside explicit pairs they would be lost.
        lost = {"ties": [list(tie) for tie in self._ties]} if self._ties and ranking.ranks is None else {}
        return replace(
            self._first,
            responses=tuple(replace(answer, rank=rank) for answer, rank in zip(self._responses, ranks, strict=True)),
            own_media=tuple(self._own_media),
            pairs=ranking.pairs,
            meta={**self._meta, **lost},
            notes={name: count for name, count in self._notes.items() if count},
            problems=(*self._problems, *ranking.problems),
        )

    def _place(self, content: _Content, response: Response, own: tuple[MediaItem, ...]) -> int:
        """The number of a response among all, which is joined with what is there."""
        place = self._places.setdefault(content, len(self._places))
        if place == len(self._responses):
            self._responses.append(response)
            self._own_media.append(own)
        else:
            self._notes["repeated responses merged"] += 1
            self._responses[place] = _join(self._responses[place], response)
        return place


def _pairs_of(record: RankedRecord) -> Iterable[Pair]:
    if record.pairs is not None:
        return record.pairs
    ranks = [response.rank for response in record.responses]
    return [
        (i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a is not None and b is not None and a < b
    ]


def _ties_of(record: RankedRecord) -> Iterable[Pair]:
    """Two responses that one record calls equal; of three, a pair says which are better and nothing of the others."""
    ranks = [response.rank for response in record.responses]
    return [(0, 1)] if record.pairs is None and len(ranks) == 2 and ranks[0] == ranks[1] is not None else []


def _join(first: Response, other: Response) -> Response:
    """Put together what is known about one answer: different reasons become lines; of two scores the first counts."""
    return replace(
        first,
        critiques=_lines(first.critiques, other.critiques),
        reasons=_lines(first.reasons, other.reasons),
        scores={**other.scores, **first.scores},
        model=first.model or other.model,
    )


def _lines(first: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    joined = dict(first)
    for name, text in other.items():
        if name not in joined:
            joined[name] = text
        elif f"\n{text}\n" not in f"\n{joined[name]}\n":
            joined[name] += f"\n{text}"
    return joined
