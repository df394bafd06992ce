"""Stage `rewardbench`: a reward model on a benchmark of ranked queries, in one table with the baselines it has to beat.

Follows: MM-RLHF-RewardBench (arXiv 2502.10391): ACC over pairs, ACC+ over queries, ties wrong, per category.
Differs in: always with intervals, and with what length and the wording of the human critiques alone achieve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmrlhf.data.index import Index
from mmrlhf.data.sidecar import SideCar
from mmrlhf.errors import DataError
from mmrlhf.stages.passes import pick_device
from mmrlhf.stages.ranking_report import GENERATED, GIVEN, ranking_summary
from mmrlhf.stages.reward_model import RewardModel
from mmrlhf.stages.runtime import Runtime
from mmrlhf.stages.score import GIVEN_REWARDS, REWARDS
from mmrlhf.stages.scoring import Scoring
from mmrlhf.stages.settings import CritiqueSettings, PassSettings
from mmrlhf.stages.store import write_json

TABLE_FILE = "rewardbench.md"


def run(
    out: Path,
    *,
    shards: Path,
    reward_model: Path | None = None,
    rewards: Path | None = None,
    critique: str = "short",
    passes: PassSettings | None = None,
    critiques: CritiqueSettings | None = None,
    compare_given: bool = False,
    limit: int | None = None,
    seed: int = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/metrics.json` and `out/rewardbench.md`; without a reward model, the baselines alone.

    Args:
        shards: the benchmark, packed (`data=rewardbench`).
        reward_model: folder that the reward stage wrote.
        rewards: a finished side-car of rewards for these queries, instead of `reward_model`.
        critique: which of the annotated critiques the bag-of-words baseline reads.
        passes: how the model is asked; critiques: how it writes them.
        compare_given: also score with the annotated critiques in context; every response needs one.
        limit: at most this many queries.
    """
    out.mkdir(parents=True, exist_ok=True)
    index, passes = Index.load(shards), passes or PassSettings()
    rows = index.split("all", 0.0, limit)
    tables: dict[str, SideCar] = {}
    if rewards is not None:
        tables[GENERATED] = SideCar.load(rewards)
    elif reward_model is not None:
        judge = RewardModel.from_pretrained(reward_model, passes, critiques, device=pick_device(runtime))
        scoring = Scoring(index, judge, reward_model, passes.groups_per_batch, runtime)
        scoring.write(out / REWARDS, rows)
        tables[GENERATED] = SideCar.load(out / REWARDS)
        if compare_given and judge.writes_critiques:
            tables[GIVEN] = scoring.given(out / GIVEN_REWARDS, rows)
    summary = ranking_summary(index, rows, tables, critique=critique, seed=seed)
    if "annotators" not in summary["accuracy"]:
        raise DataError("the benchmark has no ranked pair", where=shards, given=f"{len(rows)} queries")
    table = benchmark_table(summary["accuracy"]["annotators"])
    (out / TABLE_FILE).write_text(markdown(table))
    Console().print(table_on_terminal(table))
    write_json(out / "metrics.json", summary)
    return summary


def benchmark_table(reports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text, heading first: scorer, ACC and ACC+ with 95% intervals, then ACC / ACC+ of every category."""
    categories = sorted({name for report in reports.values() for name in report["categories"]})
    rows = [["scorer", "ACC", "ACC+", *categories]]
    for scorer, report in reports.items():
        own = [report["categories"].get(name) for name in categories]
        cells = [f"{part['acc']['mean']:.3f} / {part['acc_plus']['mean']:.3f}" if part else "" for part in own]
        rows.append([scorer, _with_interval(report["acc"]), _with_interval(report["acc_plus"]), *cells])
    return rows


def _with_interval(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of text, heading first, as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def table_on_terminal(rows: Sequence[Sequence[str]]) -> Table:
    """Show rows of text, heading first, without the categories, which do not fit on every terminal."""
    table = Table(title=f"with 95% intervals; by category: {TABLE_FILE}", title_justify="left")
    for number, heading in enumerate(rows[0][:3]):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows[1:]:
        table.add_row(*row[:3])
    return table
