"""Stage `score`: the reward model scores every response of a data set, and says how well that ranks them.

Follows: MM-RLHF (arXiv 2502.10391), section 4: write a critique, then score with the critique in context.
Differs in: all K responses of many queries are criticised in one batch and scored in one packed forward, videos
included, and the rewards are kept per response, so that every pair's margin reaches MM-DPO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.feed.selection import Queries, Selection, usable
from mmrlhf.inference.reward_model import CritiqueSource, RewardModel
from mmrlhf.inference.scoring import Scoring
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.sharing import share_pass
from mmrlhf.ranges import Count, Natural, Share
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.reporting.accuracy import GENERATED, GIVEN, ranking_summary
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.scores import ScoreSummary
from mmrlhf.tokens.protocol import Protocol

REWARDS, GIVEN_REWARDS = "rewards", "rewards_given_critique"

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("rewards/_meta.json", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    reward_model: Path,
    passes: PassSettings | None = None,
    critiques: CritiqueSettings | None = None,
    critique_source: CritiqueSource = "generate",
    compare_given: bool = False,
    protocol: Protocol = "trained",
    holdout: Share = 0.05,
    limit: Count | None = None,
    selection: Selection | None = None,
    report_queries: Count = 5000,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/rewards` (a side-car: reward, critique, critique_tokens per response) and report the accuracy.

    A run that was stopped goes on with the queries that are missing.

    Args:
        shards: folder of shards.
        reward_model: folder that the reward stage wrote (its `model`).
        passes: how the model is asked.
        critiques: how it writes critiques.
        protocol: `trained`, or `released`: as MM-RLHF's release evaluates (LLaVA-OneVision alone).
        critique_source: `generate`, or `given` for the annotated critiques.
        compare_given: also score held-out queries with their annotated critiques (an upper bound).
        holdout: share of held-out queries, as in training.
        limit: score at most this many training queries.
        selection: which queries, as in training.
        report_queries: at most this many queries on each side enter the report.
        seed: of what is drawn for the report.
    """
    index, passes = Index.load(shards), passes or PassSettings()
    queries = Queries(holdout, selection, limit)
    heldout, train = queries.heldout(index).rows, queries.train(index).rows
    rows = np.concatenate([heldout, train])
    quarantine = Quarantine(len(rows), runtime.max_damaged)
    with share_pass(runtime) as ranks:
        judge = RewardModel.from_pretrained(reward_model, passes, critiques, protocol=protocol, device=ranks.device)
        scoring = Scoring(index, judge, reward_model, passes.groups_per_batch, runtime, ranks=ranks)
        rates = scoring.write(out / REWARDS, rows, critique_source, quarantine)
        compare_given &= judge.writes_critiques and critique_source == "generate"
        given = scoring.given(out / GIVEN_REWARDS, heldout, quarantine) if compare_given else None
    if not ranks.leads:
        return rates
    scorer = GIVEN if critique_source == "given" and judge.writes_critiques else GENERATED
    tables = {scorer: SideCar.load(out / REWARDS)}
    compared = dict(tables)
    if given is not None:
        compared[GIVEN] = given
    summary = ScoreSummary(
        writes_critiques=judge.writes_critiques,
        critique_source=critique_source if judge.writes_critiques else "none",
        **rates,
        quarantined=quarantine.summary(),
        heldout=ranking_summary(index, usable(index, heldout, quarantine)[:report_queries], compared, seed=seed),
        train=ranking_summary(index, usable(index, train, quarantine)[:report_queries], tables, seed=seed),
    )
    return summary.write(out)
