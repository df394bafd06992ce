"""Verdicts to numbers: margins of pairs, how often the order decided, and what could not be read.

A pair that lacks a verdict in some order has no number: it is left out and counted, and so is its query where all
pairs of a query are needed. Of several responses that were compared at once, all orders are needed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from mmrlhf.judging.ballots import Ballot
from mmrlhf.judging.polling import Question
from mmrlhf.metrics.intervals import Interval, share_interval
from mmrlhf.types import PreferenceGroup

Pair = tuple[int, int]


@dataclass(frozen=True)
class Vote:
    """One verdict: the place that it chose or the rating that it gave; or, without one, `reason`, why."""

    chosen: int | None
    reason: str = ""


@dataclass
class Tally:
    """What has been counted so far.

    margins: pair -> how much more of the votes, or of the rating, the first has; scores: one number for each response,
    where all of them were compared or rated; excluded_pairs: without a number, in `excluded` queries.
    """

    margins: dict[str, dict[Pair, float]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    ballots: Counter[str] = field(default_factory=Counter)
    no_verdict: Counter[str] = field(default_factory=Counter)
    verdicts: int = 0
    excluded: int = 0
    excluded_pairs: int = 0
    _places: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    _same: list[tuple[str, bool]] = field(default_factory=list)

    def add(self, group: PreferenceGroup, name: str, ballot: Ballot, votes: Mapping[Question, Sequence[Vote]]) -> None:
        """Count a query's votes."""
        self.ballots[name] += 1
        pairs = group.ranked_pairs()
        said = {question: [v.chosen for v in own if v.chosen is not None] for question, own in votes.items()}
        self.verdicts += sum(map(len, votes.values()))
        self.no_verdict.update(vote.reason for own in votes.values() for vote in own if vote.chosen is None)
        if ballot.form != "rating":
            for question, own in said.items():
                self._places[len(question.shown)].update(own)
            self._same += [(group.key, same) for same in _consistent(said)]
        if ballot.form == "pair":
            margins = _pair_margins(pairs, said)
        else:
            scores = _means(said) if ballot.form == "rating" else _shares(len(group.responses), said)
            margins = {(i, j): scores[i] - scores[j] for i, j in pairs if i in scores and j in scores}
            if len(scores) == len(group.responses):
                self.scores[group.key] = [scores[place] for place in range(len(scores))]
        if margins:
            self.margins[group.key] = margins
        self.excluded += len(margins) < len(pairs)
        self.excluded_pairs += len(pairs) - len(margins)

    @property
    def places(self) -> dict[str, list[float]]:
        """Share of verdicts that chose each place, by the number of responses shown."""
        return {
            str(number): [counts[place] / counts.total() for place in range(number)]
            for number, counts in sorted(self._places.items())
            if counts
        }

    @property
    def consistent(self) -> Interval | None:
        """Share of comparisons whose orders agree, with an interval over queries; None where there is none."""
        if not self._same:
            return None
        return share_interval([same for _, same in self._same], groups=[key for key, _ in self._same])


def _consistent(said: Mapping[Question, Sequence[int]]) -> Iterable[bool]:
    """Of every set of responses that was shown in several orders: whether all orders chose the same one most often."""
    orders: dict[frozenset[int], list[tuple[Question, Sequence[int]]]] = defaultdict(list)
    for question, places in said.items():
        orders[frozenset(question.shown)].append((question, places))
    for own in orders.values():
        if len(own) > 1 and all(places for _, places in own):
            chosen = [_favourites([question.shown[place] for place in places]) for question, places in own]
            yield all(each == chosen[0] for each in chosen) and len(chosen[0]) == 1


def _favourites(chosen: Sequence[int]) -> set[int]:
    counts = Counter(chosen)
    return {response for response, count in counts.items() if count == max(counts.values())}


def _pair_margins(pairs: Sequence[Pair], said: Mapping[Question, Sequence[int]]) -> dict[Pair, float]:
    """For every pair the mean over orders of the first one's share of votes minus the second's."""
    found: dict[Pair, float] = {}
    for pair in pairs:
        orders = [(question, places) for question, places in said.items() if set(question.shown) == set(pair)]
        if all(places for _, places in orders):
            shares = [np.mean([1 if q.shown[place] == pair[0] else -1 for place in places]) for q, places in orders]
            found[pair] = float(np.mean(shares))
    return found


def _shares(number: int, said: Mapping[Question, Sequence[int]]) -> dict[int, float]:
    """Every response's share of votes, each order counting once; nothing where an order has none."""
    if not all(said.values()):
        return {}
    # fractions, so that responses with the same share tie whatever the order of its parts
    totals = dict.fromkeys(range(number), Fraction(0))
    for question, places in said.items():
        for place in places:
            totals[question.shown[place]] += Fraction(1, len(places) * len(said))
    return {place: float(total) for place, total in totals.items()}


def _means(said: Mapping[Question, Sequence[int]]) -> dict[int, float]:
    """The mean rating of every response that has one."""
    return {question.shown[0]: float(np.mean(own)) for question, own in said.items() if own}
