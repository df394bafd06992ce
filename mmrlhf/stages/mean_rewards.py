"""Stage `mean_rewards`: the mean of several reward models' rewards, in the form that one reward model's have.

Follows: BaseReward (arXiv 2509.16127), which averages two models' rewards. Differs in: any number of tables; rewards
may be brought to one scale first, so that no model weighs more because its rewards spread more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, MissingRowError
from mmrlhf.feed.selection import Queries, Selection
from mmrlhf.methods.pairing import REWARD
from mmrlhf.ranges import Count, Natural, Share
from mmrlhf.reporting.accuracy import ranking_summary
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.sidecar_files import require_tables
from mmrlhf.summaries.scores import MeanRewardsSummary, RewardScale
from mmrlhf.terminal.progress import track
from mmrlhf.training.fit import check_table

REWARDS, MEAN = "rewards", "mean of rewards"
Scaling = Literal["raw", "standardise"]

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("rewards/_meta.json", "metrics.json")


@dataclass(frozen=True)
class _Rewards:
    """All models' rewards (models, K) of one query's responses."""

    key: str
    hashes: tuple[str, ...]
    values: np.ndarray


def run(
    out: Path,
    *,
    shards: Path,
    tables: Mapping[str, Path],
    scaling: Scaling = "raw",
    holdout: Share = 0.05,
    limit: Count | None = None,
    selection: Selection | None = None,
    report_queries: Count = 5000,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/rewards` (a side-car: reward per response) and report how it and each table rank, as `score` does.

    A query of which some table lacks a response is left out, named with its reason in the table and counted.

    Args:
        shards: folder of shards.
        tables: name -> table of rewards (side-car with the column `reward`), two or more.
        scaling: `raw`: the mean of the rewards as they are; `standardise`: each table's rewards first less their mean
            and divided by their standard deviation, both over all responses of the training queries that all have.
        holdout, limit: share of held-out queries (all are done), and training queries at most.
        selection: which queries, as in training.
        report_queries: at most this many queries on each side enter the report.
        seed: of what is drawn for the report.

    Raises:
        ConfigError: fewer than two tables.
        DataError: a table that was made with other shards; no query that all tables have; rewards that are all alike.
    """
    check_settings({"tables": tables})
    index = Index.load(shards)
    loaded = {name: SideCar.load(path, columns=[REWARD]) for name, path in tables.items()}
    for name, table in loaded.items():
        check_table(table, {"shards": index.digest}, name=f"rewards '{name}'", stage="score")
    queries = Queries(holdout, selection, limit)
    sides = {"heldout": queries.heldout(index).rows, "train": queries.train(index).rows}
    lacking: dict[str, dict[str, str]] = {name: {} for name in loaded}
    read = {
        side: [_read(index, int(row), loaded, lacking) for row in track(rows, side, enabled=runtime.progress)]
        for side, rows in sides.items()
    }
    found = {side: [own for own in side_rewards if own is not None] for side, side_rewards in read.items()}
    scales = _scales(found["train"], list(loaded), scaling, out)
    fingerprint = {
        "made_by": "mean_rewards",
        "shards": index.digest,
        "scaling": scaling,
        "tables": {name: dict(table.fingerprint) for name, table in loaded.items()},
    }
    _write(out / REWARDS, fingerprint, [*found["heldout"], *found["train"]], list(scales.values()), lacking)
    scorers = {MEAN: SideCar.load(out / REWARDS), **{f"{name} alone": table for name, table in loaded.items()}}
    rankings = {
        side: ranking_summary(index, _kept(rows, read[side])[:report_queries], scorers, seed=seed)
        for side, rows in sides.items()
    }
    summary = MeanRewardsSummary(
        scaling=scaling,
        queries=len(found["heldout"]) + len(found["train"]),
        lacking={name: len(keys) for name, keys in lacking.items()},
        scales=scales,
        **rankings,
    )
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what is no mean of several (ConfigError), and a folder without a table (DataError)."""
    tables = settings.get("tables") or {}
    if len(tables) < 2 or any(path is None for path in tables.values()):
        raise ConfigError(
            "a mean of rewards needs the tables of two reward models or more",
            argument="tables",
            given=dict(tables),
            expected="NAME: FOLDER of each",
            fix="'inputs.reward_tables={other: FOLDER}' adds one: the folder `rewards` that stage=score wrote with "
            "another reward model",
        )
    require_tables({f"tables.{name}": folder for name, folder in tables.items()})


def _read(
    index: Index, row: int, tables: Mapping[str, SideCar], lacking: Mapping[str, dict[str, str]]
) -> _Rewards | None:
    """A query's rewards by all tables; None, and the reason in `lacking`, where a table has not all of them."""
    group = index.read(row, media=False)
    hashes = tuple(response.hash for response in group.responses)
    values: list[np.ndarray] = []
    for name, table in tables.items():
        try:
            values.append(table.lookup(group.key, hashes)[REWARD].double().numpy())
        except MissingRowError:
            lacking[name][group.key] = table.left_out.get(group.key, "no reward of all its responses")
    return _Rewards(group.key, hashes, np.stack(values)) if len(values) == len(tables) else None


def _scales(train: Sequence[_Rewards], names: Sequence[str], scaling: Scaling, out: Path) -> dict[str, RewardScale]:
    """Mean and standard deviation of each table's rewards on training queries; 0 and 1 where they stay as they are."""
    if not train:
        raise DataError(
            "no training query has rewards in all tables",
            where=out,
            given=f"tables {', '.join(names)}",
            expected="rewards of the same queries by each reward model",
            fix="score the shards in use with each of them (stage=score), or raise what limits a table's queries",
        )
    if scaling == "raw":
        return {name: RewardScale(mean=0.0, deviation=1.0) for name in names}
    every = np.concatenate([own.values for own in train], axis=1)
    for name, spread in zip(names, np.ptp(every, axis=1), strict=True):
        if spread == 0:
            raise DataError(
                "rewards that are all alike have no scale",
                argument=f"tables.{name}",
                given=f"{every.shape[1]} equal rewards on training queries",
                expected="a reward model that tells responses apart",
                fix="leave the table out, or stages.mean_rewards.scaling=raw",
            )
    moments = zip(names, every.mean(axis=1), every.std(axis=1), strict=True)
    return {name: RewardScale(mean=float(mean), deviation=float(deviation)) for name, mean, deviation in moments}


def _write(
    folder: Path,
    fingerprint: Mapping[str, Any],
    rewards: Sequence[_Rewards],
    scales: Sequence[RewardScale],
    lacking: Mapping[str, Mapping[str, str]],
) -> None:
    means = np.array([[scale.mean] for scale in scales])
    deviations = np.array([[scale.deviation] for scale in scales])
    reasons: dict[str, str] = {}
    for name, keys in lacking.items():
        for key, why in keys.items():
            reasons[key] = "; ".join(filter(None, (reasons.get(key), f"table '{name}': {why}")))
    with SideCarWriter(folder, columns=[REWARD], fingerprint=fingerprint) as writer:
        done = writer.done_keys()
        for own in rewards:
            if own.key not in done:
                combined = ((own.values - means) / deviations).mean(axis=0)
                for response_hash, value in zip(own.hashes, combined, strict=True):
                    writer.add(own.key, response_hash, {REWARD: float(value)})
        writer.leave_out(reasons)


def _kept(rows: np.ndarray, read: Sequence[_Rewards | None]) -> np.ndarray:
    return rows[[own is not None for own in read]] if len(rows) else rows
