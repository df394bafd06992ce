"""Stage `annotations`: rewards of responses from what is annotated about them, in the form that a reward model's have.

Follows: MM-RLHF (arXiv 2502.10391), section 3: responses are scored on helpfulness, faithfulness and ethics, and
overall. Differs in: the paper never uses these as margins; here they are one of the sources that margins can be
compared by, and so is the truth where the world knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.selection import Queries, Selection
from mmrlhf.methods.pairing import REWARD
from mmrlhf.ranges import Count, Natural, NonNegative, Share
from mmrlhf.reporting.accuracy import ranking_summary
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.summaries.scores import AnnotationsSummary
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup, Response

REWARDS = "rewards"
Judge = Callable[[Mapping[str, Any], str], float]

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("rewards/_meta.json", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    weights: Mapping[str, NonNegative] | None = None,
    judge: Judge | None = None,
    holdout: Share = 0.05,
    limit: Count | None = None,
    selection: Selection | None = None,
    report_queries: Count = 5000,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/rewards` (a side-car: reward per response) and report how it ranks, as the stage `score` does.

    Args:
        shards: folder of shards.
        weights: dimension -> weight; a reward is the weighted mean of a response's scores.
        judge: (group's meta, response) -> true quality, in place of weights.
        holdout, limit: share of held-out queries (all are done), and training queries at most.
        selection: which queries, as in training.
        report_queries: at most this many queries on each side enter the report.
        seed: of what is drawn for the report.

    Raises:
        DataError: a response without a score that is asked for.
    """
    check_settings({"weights": weights, "judge": judge})
    index = Index.load(shards)
    queries = Queries(holdout, selection, limit)
    heldout, train = queries.heldout(index).rows, queries.train(index).rows
    fingerprint = {"made_by": "annotations", "shards": index.digest, "weights": dict(weights or {}) or "truth"}
    with SideCarWriter(out / REWARDS, columns=[REWARD], fingerprint=fingerprint) as writer:
        done = writer.done_keys()
        for row in track(np.concatenate([heldout, train]), "reading annotations", enabled=runtime.progress):
            group = index.read(int(row))
            if group.key in done:
                continue
            for response in group.responses:
                value = judge(group.meta, response.text) if judge else _weighted(group, response, weights or {})
                writer.add(group.key, response.hash, {REWARD: value})
    tables = {"truth" if judge else "annotated scores": SideCar.load(out / REWARDS)}
    summary = AnnotationsSummary(
        weights=dict(weights or {}),
        heldout=ranking_summary(index, heldout[:report_queries], tables, seed=seed),
        train=ranking_summary(index, train[:report_queries], tables, seed=seed),
    )
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that no reward follows from (ConfigError)."""
    weights = settings.get("weights") or {}
    if (settings.get("judge") is None) == (sum(weights.values()) <= 0):
        raise ConfigError(
            "rewards come from annotated scores or from the truth",
            where="stages.annotations",
            given=f"weights={dict(weights)}, judge={settings.get('judge')}",
            expected="weights with a sum above 0, or a judge that knows the truth (data.judge), and not both",
        )


def _weighted(group: PreferenceGroup, response: Response, weights: Mapping[str, float]) -> float:
    lacking = [name for name, weight in weights.items() if weight != 0 and name not in response.scores]
    if lacking:
        raise DataError(
            f"a response has no score for {', '.join(lacking)}",
            where=f"key {group.key}, shard {group.shard}",
            given=f"scores: {', '.join(response.scores) or 'none'}",
            expected="a score for every dimension with a weight, on every response",
            fix="weigh other dimensions (stages.annotations.weights), or take margins from a reward model",
        )
    total = sum(weight * response.scores[name] for name, weight in weights.items() if weight != 0)
    return total / sum(weights.values())
