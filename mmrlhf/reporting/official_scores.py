"""What a benchmark's own script reports of a scorer, where that is no accuracy over pairs.

By the source that records name: RewardBench 2 (arXiv 2506.01937) and MR2Bench (2604.10966) choose the best of several,
MJ-Bench (2407.04842) counts ties as wrong, or not at all. Of the other benchmarks ACC and macro ACC are the numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmrlhf.metrics.best_choice import RightAndWrong, best_choice, ties_score
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.types import PreferenceGroup

TIES, AVERAGE = "Ties", "average"
# key of a query -> one number for each response
Scores = Mapping[str, Sequence[float]]


class Scored(NamedTuple):
    """A query without its media, and a scorer's number for each response."""

    group: PreferenceGroup
    scores: Sequence[float]

    @property
    def best(self) -> list[bool]:
        """Which responses nobody ranks below another."""
        ranks = [response.rank for response in self.group.responses if response.rank is not None]
        return [response.rank == min(ranks) for response in self.group.responses]


def _choices(scored: Sequence[Scored]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for each in scored:
        found[each.group.category].append(best_choice(each.scores, each.best))
    return {name: float(np.mean(own)) for name, own in sorted(found.items())}


def rewardbench_2(scored: Sequence[Scored]) -> dict[str, float]:
    """Best of 4 by subset, the score of Ties, and the mean of the subsets.

    Ties has none where no question of it is there in both ways.
    """
    found = _choices([each for each in scored if each.group.category != TIES])
    ways: dict[str, dict[str, RightAndWrong]] = {"ref": {}, "tied": {}}
    for each in scored:
        if each.group.category == TIES:
            way, _, name = str(each.group.meta["sample"]).partition(":")
            sides: tuple[list[float], list[float]] = ([], [])
            for score, right in zip(each.scores, each.best, strict=True):
                sides[0 if right else 1].append(score)
            ways["ref" if way == "ref" else "tied"][name] = RightAndWrong(*sides)
    if ways["ref"].keys() & ways["tied"].keys():
        found[TIES] = ties_score(ways["ref"], ways["tied"])
    return found | ({AVERAGE: float(np.mean(list(found.values())))} if found else {})


def mr2bench(scored: Sequence[Scored]) -> dict[str, float]:
    """Best of all responses, over everything and by kind of media."""
    return _choices(scored) | {"all": float(np.mean([best_choice(each.scores, each.best) for each in scored]))}


def mj_bench(scored: Sequence[Scored]) -> dict[str, float]:
    """Share of pairs that are right: with ties as wrong ones, and without the ties."""
    sides = [(each.scores[i], each.scores[j]) for each in scored for i, j in each.group.ranked_pairs()]
    right, tied = sum(a > b for a, b in sides), sum(a == b for a, b in sides)
    return {"with ties": right / len(sides)} | (
        {"without ties": right / (len(sides) - tied)} if tied < len(sides) else {}
    )


OFFICIAL: Mapping[str, Callable[[Sequence[Scored]], dict[str, float]]] = {
    "RewardBench 2": rewardbench_2,
    "MR2Bench": mr2bench,
    "MJ-Bench": mj_bench,
}


def official_scores(
    index: Index, rows: np.ndarray, tables: Mapping[str, SideCar], scores: Mapping[str, Scores]
) -> dict[str, dict[str, float]]:
    """Scorer -> what its benchmark's script would report; empty where all records are of other benchmarks.

    Where records are of several benchmarks, each number has its benchmark's name in front.

    Args:
        tables: scorer -> rewards; scores: the same of judges. A query without numbers, or without two responses of
            which one is better, does not count.
    """
    read = (index.read(int(row), media=False) for row in rows)
    groups = [group for group in read if group.source in OFFICIAL and group.ranked_pairs()]
    several = len({group.source for group in groups}) > 1
    looked_up = {name: _look_up(groups, table) for name, table in tables.items()}
    found: dict[str, dict[str, float]] = {}
    for name, own in {**looked_up, **scores}.items():
        for source, count in OFFICIAL.items():
            scored = [Scored(each, own[each.key]) for each in groups if each.source == source and each.key in own]
            for measure, value in count(scored).items() if scored else ():
                found.setdefault(name, {})[f"{source}: {measure}" if several else measure] = value
    return found


def _look_up(groups: Sequence[PreferenceGroup], table: SideCar) -> Scores:
    known = [group for group in groups if group.key in table]
    return {
        group.key: table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
        for group in known
    }
