"""Which rows fall: too close to a benchmark, asked twice, or one question too many on one picture.

Pictures are compared first, by their bytes, then by features and perceptual hash; then questions, by the words that
they share. A row is only compared with rows that are kept (keep-first).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmrlhf.curation.feature_parts import Features
from mmrlhf.curation.neighbours import NearPairs, Sameness, UnitRows, first_of_each, near_pairs
from mmrlhf.curation.query_rows import Queries

KEPT, NO_FEATURES, BENCHMARK, DUPLICATE, CROWDED = "kept", "no features", "benchmark", "duplicate", "crowded picture"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class DuplicateSettings:
    """When a query is one too many.

    Args:
        cosine: of two pictures that are the same, whatever their hashes say.
        cosine_with_hash, bits: of two pictures that are the same because their hashes differ in few bits, too.
        text_cosine: of two queries without pictures that may be the same.
        words: share of common words from which on two questions are the same.
        per_picture: questions on one picture that are kept.
    """

    cosine: float = 0.97
    cosine_with_hash: float = 0.9
    bits: int = 6
    text_cosine: float = 0.9
    words: float = 0.8
    per_picture: int = 3


@dataclass(frozen=True)
class Decisions:
    """What becomes of each row (N,): `fate`, and `because` of which row (-1: none). pairs: of rows, as found."""

    fate: np.ndarray
    because: np.ndarray
    pairs: NearPairs


def decide(
    queries: Queries, features: Features, settings: DuplicateSettings | None, *, seed: int = 0, progress: bool = False
) -> Decisions:
    """Find out which rows are kept; rows of benchmarks come first, so that others fall for them.

    Args:
        settings: None: every row that has features is kept.
    """
    order = np.argsort(~queries.against, kind="stable")
    usable = np.ones(len(queries), bool)
    usable[list(features.left_out)] = False
    order = order[usable[order]]
    fate = np.where(usable, KEPT, NO_FEATURES).astype(object)
    because = np.full(len(queries), -1)
    shown = features.media[order] != 0
    shown &= features.picture_dim > 0
    found = []
    for rows, pictured in ((order[shown], True), (order[~shown], False)):
        if settings is not None and len(rows):
            pairs, leader = _leaders(features, rows, pictured, settings, seed, progress)
            found.append(pairs)
            place = np.zeros(len(queries), np.uint64) if pictured else features.media
            _fall(queries, rows, leader, place, pictured, settings, fate, because)
    return Decisions(fate, because, _joined(found))


def picture_rows(features: Features) -> UnitRows:
    """The half of the features that is of pictures, as unit rows."""
    return lambda rows: _unit(features.take(rows, slice(features.picture_dim)))


def text_rows(features: Features) -> UnitRows:
    """The half of the features that is of texts, as unit rows."""
    return lambda rows: _unit(features.take(rows, slice(features.picture_dim, None)))


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows, dim=1) if rows.shape[1] else torch.zeros(len(rows), 1)


def _leaders(
    features: Features, rows: np.ndarray, pictured: bool, settings: DuplicateSettings, seed: int, progress: bool
) -> tuple[NearPairs, np.ndarray]:
    """Pairs of rows that show (or ask) nearly the same, and for each row (n,) the first row that does.

    Rows with the same bytes are one picture (or text), compared once.
    """
    content = (features.media if pictured else features.texts)[rows]
    _, first, same_as = np.unique(content, return_index=True, return_inverse=True)
    unique = np.sort(first)
    place = np.searchsorted(unique, first)[same_as]
    known = rows[unique]
    take = picture_rows(features) if pictured else text_rows(features)
    same = (
        Sameness(settings.cosine, settings.cosine_with_hash, settings.bits)
        if pictured
        else Sameness(settings.text_cosine)
    )
    hashes = features.hashes[known] if pictured else np.zeros(len(known), np.uint64)
    pairs = near_pairs(lambda wanted: take(known[wanted]), hashes, same, seed=seed, progress=progress)
    leader = first_of_each(len(unique), pairs.first, pairs.second)
    named = NearPairs(known[pairs.first], known[pairs.second], pairs.cosine, pairs.bits, pairs.crowded)
    return named, known[leader][place]


def _fall(
    queries: Queries,
    rows: np.ndarray,
    leader: np.ndarray,
    place: np.ndarray,
    pictured: bool,
    settings: DuplicateSettings,
    fate: np.ndarray,
    because: np.ndarray,
) -> None:
    """Go through the rows of each picture (or question) in order, and let fall what is one too many.

    Args:
        place: of every row (N,); words are compared at one place only. Where texts alone have features, the pictures
            that they are about are such places.
    """
    order = np.argsort(leader, kind="stable")
    _, starts, counts = np.unique(leader[order], return_index=True, return_counts=True)
    against, several = queries.against, counts > 1
    for start, count in zip(starts[several], counts[several], strict=True):
        members = rows[order[start : start + count]].tolist()
        benchmark = [row for row in members if against[row]]
        others = [row for row in members if not against[row]]
        if benchmark and pictured:  # the picture alone gives a benchmark away
            fate[others], because[others] = BENCHMARK, benchmark[0]
            continue
        words = _reader(queries)
        kept_at = {
            each: KeptRows(words, settings.words, Counter(word for row in members for word in words(row)))
            for each in {int(place[row]) for row in members}
        }
        for row in benchmark:
            kept_at[int(place[row])].add(row)
        for row in others:
            kept = kept_at[int(place[row])]
            twin = kept.twin(row)
            if twin is not None:
                fate[row], because[row] = BENCHMARK if against[twin] else DUPLICATE, twin
            elif pictured and len(kept.rows) >= settings.per_picture:
                fate[row], because[row] = CROWDED, kept.rows[0]
            else:
                kept.add(row)


class KeptRows:
    """The rows that are kept at one place, found by their words.

    Follows: prefix filtering (Chaudhuri, Ganti and Kaushik 2006): two sets that have a share in common have one of
    their rarest words in common, so a row is compared with few of many.

    Args:
        words: of a row.
        share: of common words from which on two rows are the same.
        counts: how many rows have a word.
    """

    def __init__(self, words: Callable[[int], frozenset[str]], share: float, counts: Counter[str]) -> None:
        self.rows: list[int] = []
        self._words, self._share, self._counts = words, share, counts
        self._at: dict[str, list[int]] = {}

    def add(self, row: int) -> None:
        """Keep a row."""
        for word in self._rarest(row):
            self._at.setdefault(word, []).append(len(self.rows))
        self.rows.append(row)

    def twin(self, row: int) -> int | None:
        """The first row that is the same; None where there is none."""
        own = self._words(row)
        near: Iterable[int] = range(len(self.rows))
        if self._share > 0:
            near = sorted({number for word in self._rarest(row) for number in self._at.get(word, ())})
        found = (self.rows[number] for number in near)
        return next((other for other in found if _common(own, self._words(other)) >= self._share), None)

    def _rarest(self, row: int) -> list[str]:
        """As many words, the rarest first, as leave less than the share to the others; "" for a row without any."""
        own = sorted(self._words(row), key=lambda word: (self._counts[word], word))
        return own[: len(own) - math.ceil(self._share * len(own) - 1e-9) + 1] or [""]


def _reader(queries: Queries) -> Callable[[int], frozenset[str]]:
    known: dict[int, frozenset[str]] = {}

    def words(row: int) -> frozenset[str]:
        if row not in known:
            known[row] = frozenset(_WORD.findall(queries.text(row).lower()))
        return known[row]

    return words


def _common(left: frozenset[str], right: frozenset[str]) -> float:
    """Share of words that two questions have in common (Jaccard); 1 for two without any."""
    return len(left & right) / len(left | right) if left | right else 1.0


def _joined(found: list[NearPairs]) -> NearPairs:
    nothing = np.empty(0, np.int64)
    empty = NearPairs(nothing, nothing, np.empty(0, np.float32), nothing)
    first, second, cosine, bits = (
        np.concatenate([getattr(each, name) for each in [empty, *found]])
        for name in ("first", "second", "cosine", "bits")
    )
    return NearPairs(first, second, cosine, bits, sum(each.crowded for each in found))
