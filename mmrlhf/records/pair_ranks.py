"""Pairs of one query to ranks, whenever ranks can say exactly the same as the pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

Pair = tuple[int, int]


@dataclass(frozen=True)
class Ranking:
    """An order of K responses: either ranks (1 is best, ties share), or the pairs themselves where ranks fail.

    `problems` says in words where annotations contradict each other; a partial order is not a problem.
    """

    ranks: tuple[int, ...] | None
    pairs: tuple[Pair, ...] | None
    problems: tuple[str, ...] = ()


def rank_from_pairs(num_responses: int, pairs: Iterable[Pair], ties: Iterable[Pair] = ()) -> Ranking:
    """Find the weak order in which two responses differ in rank if and only if they are a pair.

    In such an order, everything in one class is beaten by the same responses, so counting the responses above each
    one gives the only candidate; it holds if it reproduces the pairs exactly. Otherwise the pairs are kept.

    Args:
        num_responses: K; the indices in pairs and ties run below it.
        pairs: (better, worse) indices, both different.
        ties: index pairs that an annotator called equal. Ties follow from the ranks, so these only serve to
            find contradictions.
    """
    wanted = dict.fromkeys(pairs)
    above = [0] * num_responses
    for _, worse in wanted:
        above[worse] += 1
    classes = {count: rank for rank, count in enumerate(sorted(set(above)), start=1)}
    ranks = tuple(classes[count] for count in above)
    implied = {(i, j) for i in range(num_responses) for j in range(num_responses) if ranks[i] < ranks[j]}
    problems = _problems(wanted, ties)
    if implied == wanted.keys():
        return Ranking(ranks, None, problems)
    return Ranking(None, tuple(wanted), problems)


def _problems(pairs: dict[Pair, None], ties: Iterable[Pair]) -> tuple[str, ...]:
    mutual = [(i, j) for i, j in pairs if i < j and (j, i) in pairs]
    found = [f"responses {i} and {j} are each preferred to the other" for i, j in mutual]
    tied = sorted({(min(tie), max(tie)) for tie in ties})
    found += [f"responses {i} and {j} are both a tie and a pair" for i, j in tied if (i, j) in pairs or (j, i) in pairs]
    graph: TopologicalSorter[int] = TopologicalSorter()
    for i, j in pairs:
        if (j, i) not in pairs:
            graph.add(j, i)
    try:
        graph.prepare()
    except CycleError as error:
        found.append("responses " + " > ".join(map(str, error.args[1])) + " are a cycle")
    return tuple(found)
