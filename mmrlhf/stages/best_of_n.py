"""Stage `best_of_n`: of a policy's n answers to each query, the one that the judge likes best.

Follows: rejection sampling as in WebGPT (arXiv 2112.09332) and Llama 2 (arXiv 2307.09288): the answers of `generate`,
the rewards of `score`. The chosen answers are a data set that any training stage takes as its input.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.ranges import Finite, Share
from mmrlhf.reporting.best_answers import Judged, best_of_rows, best_of_table, over_optimised, page, write_csv
from mmrlhf.responders.answered import ANSWERED_BY, DRAWN, about_the_query
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.summaries.evaluations import BestOfNSummary
from mmrlhf.terminal.words import show
from mmrlhf.types import PreferenceGroup

SHARDS, PAGE, TABLE = "shards", "report.html", "best_of_n.csv"

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("shards/manifest.json", "report.html", "best_of_n.csv", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    rewards: Path,
    holdout: Share = 0.05,
    least_reward: Finite | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/shards`: every query with its best answer alone; and what the choice is worth for every smaller n.

    `out/report.html` and `out/best_of_n.csv`: reward and, where it is known, truth of the best of 1, 2, 4, ..., n, with
    the distance from the policy that n stands for.

    Args:
        shards: answered queries, which `generate` wrote.
        rewards: of the answers, which `score` wrote.
        holdout: share of held-out queries, whose curve is one of its own, as in training.
        least_reward: queries whose best answer has less are left out of the chosen answers; null: none.

    Raises:
        DataError: queries that no policy has answered, or rewards of none of them.
    """
    index, table = Index.load(shards), SideCar.load(rewards)
    found = {row: _judged(index.read(row, media=False), table) for row in range(len(index))}
    judged = {row: each for row, each in found.items() if each is not None}
    if not judged:
        raise DataError(
            "the table of rewards has none of these answers", where=rewards, given=f"{len(index)} queries of {shards}",
            expected="the rewards of the same answers",
        )  # fmt: skip
    sides = {side: _of(judged, index.split(side, holdout)) for side in ("heldout", "train")}
    curves = {side: best_of_rows(queries) for side, queries in sides.items()}
    best_n, lost = over_optimised(sides["heldout"], curves["heldout"])
    summary = BestOfNSummary(
        queries=len(judged),
        answers=sum(sum(each.drawn) for each in judged.values()),
        queries_without_rewards=len(index) - len(judged),
        heldout=curves["heldout"],
        train=curves["train"],
        best_n=best_n,
        quality_lost=lost,
    )
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    write_shards(_chosen(index, judged, least_reward), out / SHARDS)
    write_csv(out / TABLE, summary)
    (out / PAGE).write_text(page(summary), encoding="utf-8")
    show(best_of_table(summary))
    return summary.write(out)


def _judged(group: PreferenceGroup, table: SideCar) -> Judged | None:
    """A query's answers with what is known about them; None where the judge could not score it."""
    if DRAWN not in group.meta:
        raise DataError(
            "this query holds no answers of a policy", where=f"key {group.key}, shard {group.shard}",
            expected="queries that stage `generate` has answered",
        )  # fmt: skip
    if group.key not in table:
        return None
    rewards = table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
    return Judged(group.key, rewards, group.meta[DRAWN], group.meta.get("quality"))


def _of(judged: dict[int, Judged], rows: np.ndarray) -> list[Judged]:
    return [judged[int(row)] for row in rows if int(row) in judged]


def _chosen(index: Index, judged: dict[int, Judged], least_reward: float | None) -> Iterator[PreferenceGroup]:
    """Every query with its best answer, the earliest of equals, as the only response."""
    for row, each in judged.items():
        best = int(np.argmax(each.rewards))
        if least_reward is not None and each.rewards[best] < least_reward:
            continue
        group = index.read(row)
        of_each = {name: group.meta[name][best : best + 1] for name in ("quality", ANSWERED_BY) if name in group.meta}
        meta = about_the_query(group.meta) | of_each
        response = replace(group.responses[best], rank=1)
        yield replace(group, responses=(response,), pairs=None, meta=meta)
