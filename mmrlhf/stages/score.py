"""Stage `score`: the reward model scores every response of a data set, and says how well that ranks them.

Follows: MM-RLHF (arXiv 2502.10391), section 4: write a critique, then score with the critique in context.
Differs in: all K responses of many queries are criticised in one batch and scored in one packed forward, videos
included, and the rewards are kept per response, so that every pair's margin reaches MM-DPO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.data.encode import MediaSettings
from mmrlhf.data.index import Index
from mmrlhf.data.sidecar import SideCar
from mmrlhf.models.load import ModelSettings
from mmrlhf.stages.passes import pick_device
from mmrlhf.stages.ranking_report import GENERATED, GIVEN, ranking_summary
from mmrlhf.stages.reward_model import CritiqueSource, RewardModel
from mmrlhf.stages.runtime import Runtime
from mmrlhf.stages.scoring import Scoring
from mmrlhf.stages.store import write_json

REWARDS, GIVEN_REWARDS = "rewards", "rewards_given_critique"


def run(
    out: Path,
    *,
    shards: Path,
    reward_model: Path,
    model: ModelSettings | None = None,
    media: MediaSettings | None = None,
    token_budget: int = 4096,
    groups_per_batch: int = 16,
    max_critique_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    critique_source: CritiqueSource = "generate",
    compare_given: bool = False,
    holdout: float = 0.05,
    limit: int | None = None,
    report_queries: int = 5000,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/rewards` (a side-car: reward, critique, critique_tokens per response) and report the accuracy.

    A run that was stopped goes on with the queries that are missing.

    Args:
        shards: folder of shards.
        reward_model: folder that the reward stage wrote (its `model`).
        model: how the model runs (precision, layout, context length).
        media: default: as the reward model was trained.
        token_budget: tokens of one packed forward (its attention mask is dense: cost grows with the square);
            groups_per_batch: queries criticised together.
        max_critique_tokens, temperature, seed: of the critiques.
        critique_source: `generate`, or `given` for the annotated critiques.
        compare_given: also score held-out queries with their annotated critiques (an upper bound).
        holdout: share of held-out queries, as in training.
        limit: score at most this many training queries.
        report_queries: at most this many queries on each side enter the report.
    """
    index = Index.load(shards)
    judge = RewardModel.from_pretrained(
        reward_model,
        model=model,
        media=media,
        device=pick_device(runtime),
        token_budget=token_budget,
        max_critique_tokens=max_critique_tokens,
        temperature=temperature,
        seed=seed,
    )
    scoring = Scoring(index, judge, reward_model, groups_per_batch, runtime)
    heldout, train = index.split("heldout", holdout), index.split("train", holdout, limit)
    rates = scoring.write(out / REWARDS, np.concatenate([heldout, train]), critique_source)
    scorer = GIVEN if critique_source == "given" and judge.writes_critiques else GENERATED
    tables = {scorer: SideCar.load(out / REWARDS)}
    compared = dict(tables)
    if compare_given and judge.writes_critiques and critique_source == "generate":
        compared[GIVEN] = scoring.given(out / GIVEN_REWARDS, heldout)
    summary = {
        "writes_critiques": judge.writes_critiques,
        "critique_source": critique_source if judge.writes_critiques else "none",
        **rates,
        "heldout": ranking_summary(index, heldout[:report_queries], compared, seed=seed),
        "train": ranking_summary(index, train[:report_queries], tables, seed=seed),
    }
    write_json(out / "metrics.json", summary)
    return summary
