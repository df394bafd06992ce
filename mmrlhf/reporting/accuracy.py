"""How well scores rank the responses of a query: one table for a scorer and for the baselines that it has to beat."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmrlhf.metrics.baselines import RankedTexts, critique_word_scores, length_scores, random_scores
from mmrlhf.metrics.ranking import accuracy_difference, accuracy_report
from mmrlhf.records.fields import is_number
from mmrlhf.reporting.reward_details import judge_report
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.rankings import ANNOTATORS, TRUTH, Accuracy, AccuracyDifference, MarginStatistics, Ranking
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

GENERATED, GIVEN = "reward model", "reward model, critique given"
NO_CRITIQUE, NO_PICTURE = "reward model, no critique", "reward model, no picture"
OTHER = "other reward model"
Pairs = Sequence[tuple[int, int]]
# of a judge that compares responses: key of a query -> (chosen, rejected) -> how much better the chosen one is
Margins = Mapping[str, Mapping[tuple[int, int], float]]
RANDOM, LONGER, WORDS = "random", "longer wins", "critique words"
BASELINES = (RANDOM, LONGER, WORDS)


@dataclass(frozen=True)
class ScoredGroup:
    """One query's responses with their scores: what a ranking report needs, without media.

    scores: scorer -> one number per response; pairs: whose side they are judged by -> (chosen, rejected) indices;
    margins: of scorers that compare, scorer -> pair -> by how much the chosen one is better.
    """

    key: str
    category: str
    scores: Mapping[str, Sequence[float]]
    pairs: Mapping[str, Pairs]
    margins: Mapping[str, Mapping[tuple[int, int], float]] = field(default_factory=dict)

    def sides(self, scorer: str, pair: tuple[int, int]) -> tuple[float, float] | None:
        """What a scorer gives the two of a pair; None where it says nothing about them."""
        if scorer in self.scores:
            return self.scores[scorer][pair[0]], self.scores[scorer][pair[1]]
        margins, reverse = self.margins.get(scorer, {}), (pair[1], pair[0])
        if pair in margins:
            return margins[pair], 0.0
        return (0.0, margins[reverse]) if reverse in margins else None

    def is_complete(self, scorer: str, judge: str) -> bool:
        """Whether a scorer says something about all pairs that it is judged by."""
        return all(self.sides(scorer, pair) is not None for pair in self.pairs.get(judge, ()))


def ranking_summary(
    index: Index,
    rows: np.ndarray,
    tables: Mapping[str, SideCar],
    *,
    compared: Mapping[str, Margins] | None = None,
    critique: str = "",
    seed: int = 0,
) -> Ranking:
    """Accuracy by annotators and by truth, with baselines, over rows of an index; and a closer look at one scorer.

    `difference` is the first scorer minus each other one; `judge` is the first one's `judge_report`. Queries that a
    model labelled are left out and counted: whoever made the labels would be judged by itself.

    Args:
        tables: scorer -> rewards; the first must have every row, others may lack some.
        compared: scorers that compare responses -> what they say of some of the queries; they stand behind the tables.
        critique: kind of annotated critique whose words are one more baseline; empty for none.
    """
    read = [index.read(int(row), media=False) for row in rows]
    groups = [group for group in read if not group.labelled_by_model]
    by_model = len(read) - len(groups)
    if by_model:
        log.warning("%d of %d queries are labelled by a model: nobody is judged by them", by_model, len(read))
    scores = [_look_up(group, tables) for group in groups]
    scored = scored_groups(groups, scores, compared=compared, critique=critique, seed=seed)
    margins = {name: margin_statistics(scored, name) for name in tables}
    return Ranking(
        queries=len(groups),
        accuracy=ranking_tables(scored),
        difference=ranking_differences(scored) if tables or compared else {},
        margin={name: found for name, found in margins.items() if found is not None},
        judge=judge_report(groups, [own[next(iter(tables))] for own in scores], seed=seed) if tables else None,
        labelled_by_model=by_model or None,
    )


def _look_up(group: PreferenceGroup, tables: Mapping[str, SideCar]) -> dict[str, list[float]]:
    hashes = [response.hash for response in group.responses]
    return {
        name: table.lookup(group.key, hashes)["reward"].tolist()
        for number, (name, table) in enumerate(tables.items())
        if number == 0 or group.key in table
    }


def scored_groups(
    groups: Sequence[PreferenceGroup],
    scores: Sequence[Mapping[str, Sequence[float]]],
    *,
    compared: Mapping[str, Margins] | None = None,
    critique: str = "",
    seed: int = 0,
) -> list[ScoredGroup]:
    """Put the scores of groups beside the baselines and the pairs of both judges.

    Judges: `annotators` (the ranks), and `truth` where `meta["quality"]` holds one true quality per response; where it
    holds anything else, the log says so.
    Baselines: `random`, `longer wins`, and `critique words` where `critique` names a kind that responses have.

    Args:
        scores: of each group, scorer -> one number per response.
        compared: as in `ranking_summary`.
    """
    ranked = RankedTexts.from_groups(groups, critique=critique)
    flat = {RANDOM: random_scores(ranked, seed=seed), LONGER: length_scores(ranked)}
    if critique and any(ranked.critiques) and ranked.pairs:
        flat[WORDS] = critique_word_scores(ranked)
    result, start = [], 0
    for group, own in zip(groups, scores, strict=True):
        end = start + len(group.responses)
        baselines = {name: values[start:end].tolist() for name, values in flat.items()}
        pairs: dict[str, Pairs] = {"annotators": group.ranked_pairs()}
        truth = true_pairs(group)
        if truth is not None:
            pairs["truth"] = truth
        said = {name: found[group.key] for name, found in (compared or {}).items() if group.key in found}
        result.append(ScoredGroup(group.key, group.category, {**own, **baselines}, pairs, said))
        start = end
    odd = sum("quality" in group.meta and true_qualities(group) is None for group in groups)
    if odd:
        log.warning("%d of %d queries say a `quality` that is not a number for each response: unused", odd, len(groups))
    return result


def true_qualities(group: PreferenceGroup) -> Sequence[float] | None:
    """`meta["quality"]`, where it is one number for each response; a record of strangers may mean anything by it."""
    found = group.meta.get("quality")
    if not isinstance(found, list | tuple) or len(found) != len(group.responses) or not all(map(is_number, found)):
        return None
    return found


def true_pairs(group: PreferenceGroup) -> Pairs | None:
    """All pairs whose true qualities differ, better one first; None where the truth is not known."""
    quality = true_qualities(group)
    if quality is None:
        return None
    return tuple((i, j) for i, a in enumerate(quality) for j, b in enumerate(quality) if a > b)


def ranking_tables(groups: Iterable[ScoredGroup]) -> dict[str, dict[str, Accuracy]]:
    """Accuracy of every scorer by every judge: judge -> scorer -> `accuracy_report`.

    A scorer is reported over the groups that have its scores, a judge over those with at least one of its pairs. ACC is
    of all pairs that a scorer says something about, ACC+ of the groups whose pairs it says something about all of; a
    category without such a group is not reported by itself, nor is a scorer that has none.
    """
    groups = list(groups)
    tables: dict[str, dict[str, Accuracy]] = {}
    for judge in (ANNOTATORS, TRUTH):
        for scorer in scorers_of(groups):
            complete = [group for group in groups if group.is_complete(scorer, judge)]
            whole = _report(complete, scorer, judge)
            if whole is not None and len(complete) < len(groups):
                every = _report(groups, scorer, judge)
                assert every is not None, "complete groups are among the groups"
                whole = _with_acc_of(every, whole)
            if whole is not None:
                tables.setdefault(judge, {})[scorer] = Accuracy.from_json(whole, where="accuracy_report")
    return tables


def _report(groups: Iterable[ScoredGroup], scorer: str, judge: str) -> dict[str, Any] | None:
    rows = [
        (group.key, group.category, *sides)
        for group in groups
        for pair in group.pairs.get(judge, ())
        if (sides := group.sides(scorer, pair)) is not None
    ]
    if not rows:
        return None
    keys, categories, chosen_scores, rejected_scores = (list(column) for column in zip(*rows, strict=True))
    return accuracy_report(keys, chosen_scores, rejected_scores, categories)


def _with_acc_of(every: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """ACC and the counts of pairs over every group, ACC+ over the whole ones."""
    parts = {
        name: {**every["categories"][name], "acc_plus": own["acc_plus"]} for name, own in whole["categories"].items()
    }
    return {**every, "acc_plus": whole["acc_plus"], "categories": parts}


def scorers_of(groups: Iterable[ScoredGroup]) -> list[str]:
    """Names of all scorers: those that score, those that compare, and the baselines last."""
    groups = list(groups)
    names = [name for group in groups for name in group.scores if name not in BASELINES]
    compare = [name for group in groups for name in group.margins]
    last = [name for name in BASELINES if any(name in group.scores for group in groups)]
    return list(dict.fromkeys([*names, *compare, *last]))


def ranking_differences(groups: Iterable[ScoredGroup]) -> dict[str, dict[str, AccuracyDifference]]:
    """The first scorer minus every other one, on the pairs that both have: judge -> scorer -> `accuracy_difference`.

    The difference of ACC+ is over groups whose pairs both have all of.
    """
    groups = list(groups)
    names = scorers_of(groups)
    found: dict[str, dict[str, AccuracyDifference]] = {}
    for judge in (ANNOTATORS, TRUTH):
        for other in names[1:]:
            both = (names[0], other)
            complete = [group for group in groups if all(group.is_complete(name, judge) for name in both)]
            gap = _difference(complete, both, judge)
            if gap is not None and len(complete) < len(groups):
                gap = {**(_difference(groups, both, judge) or gap), "acc_plus": gap["acc_plus"]}
            if gap is not None:
                found.setdefault(judge, {})[other] = AccuracyDifference.from_json(gap, where="accuracy_difference")
    return found


def _difference(groups: Iterable[ScoredGroup], names: tuple[str, str], judge: str) -> dict[str, Any] | None:
    rows = [
        (group.key, one[0] > one[1], two[0] > two[1])
        for group in groups
        for pair in group.pairs.get(judge, ())
        if (one := group.sides(names[0], pair)) is not None and (two := group.sides(names[1], pair)) is not None
    ]
    if not rows:
        return None
    keys, right, other_right = (list(column) for column in zip(*rows, strict=True))
    return accuracy_difference(keys, right, other_right)


def margin_statistics(groups: Iterable[ScoredGroup], scorer: str) -> MarginStatistics | None:
    """Where the margins (chosen minus rejected, by the annotators) of a scorer lie; what MM-DPO's beta is fed with.

    None without a pair.
    """
    margins = np.array(
        [
            group.scores[scorer][chosen] - group.scores[scorer][rejected]
            for group in groups
            if scorer in group.scores
            for chosen, rejected in group.pairs.get(ANNOTATORS, ())
        ]
    )
    if not len(margins):
        return None
    low, middle, high = np.quantile(margins, (0.05, 0.5, 0.95))
    return MarginStatistics(
        num_pairs=len(margins),
        mean=float(margins.mean()),
        std=float(margins.std()),
        p05=float(low),
        median=float(middle),
        p95=float(high),
        share_negative=float((margins < 0).mean()),
    )
