"""Stage `rewardbench`: a reward model on a benchmark of ranked queries, in one table with the baselines it has to beat.

Follows: MM-RLHF-RewardBench (arXiv 2502.10391): ACC over pairs, ACC+ over queries, ties wrong, per category.
Differs in: always with intervals and paired differences; and with what length, the wording of the human critiques, and
the model itself without the picture achieve.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.selection import usable
from mmrlhf.inference.passes import pick_device
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.scoring import Scoring
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.ranges import Count, Natural
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.reporting.accuracy import GENERATED, GIVEN, NO_CRITIQUE, NO_PICTURE, OTHER, ranking_summary
from mmrlhf.reporting.official_results import write_official
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.stages.score import REWARDS
from mmrlhf.summaries.rankings import ANNOTATORS, Accuracy, Estimate
from mmrlhf.summaries.scores import RewardBenchSummary
from mmrlhf.terminal.words import add_row, new_table, show
from mmrlhf.text import markdown_table
from mmrlhf.tokens.protocol import Protocol

log = logging.getLogger(__name__)

TABLE_FILE = "rewardbench.md"
WAYS = {"given": GIVEN, "no_critique": NO_CRITIQUE, "no_picture": NO_PICTURE}

# another number builds the stage anew, whatever `code` says
VERSION = 3
# what is in a finished artefact; checked before it is published
PROMISES = ("metrics.json", "rewardbench.md")


def run(
    out: Path,
    *,
    shards: Path,
    reward_model: Path | None = None,
    rewards: Path | None = None,
    other_rewards: Path | None = None,
    critique: str = "short",
    compare: Sequence[str] = (),
    passes: PassSettings | None = None,
    critiques: CritiqueSettings | None = None,
    protocol: Protocol = "trained",
    limit: Count | None = None,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/metrics.json` and `out/rewardbench.md`; without a reward model, the baselines alone.

    Of a published benchmark, also the file that its own scoring script reads (`mmrlhf.reporting.official_results`).

    Args:
        shards: the benchmark, packed (`stage=pack_benchmark`).
        reward_model: folder that the reward stage wrote.
        rewards: a finished side-car of rewards for these queries, instead of `reward_model`.
        other_rewards: another model's side-car for these queries, to compare with, pair by pair.
        critique: the kind of annotated critiques that the bag-of-words baseline reads and that `given` gives.
        compare: the same model asked in other ways: `given` (annotated critiques in context), `no_critique` (score at
            once), `no_picture` (text only).
        passes: how the model is asked.
        critiques: how it writes critiques.
        protocol: `trained`, or `released`: as MM-RLHF's release evaluates (LLaVA-OneVision alone).
        limit: at most this many queries.
        seed: of what is drawn for the report.

    Raises:
        DataError: no ranked pair; or a table, or the pass that makes one, left out more than the budget.
    """
    check_settings({"compare": compare})
    out.mkdir(parents=True, exist_ok=True)
    index, passes = Index.load(shards), passes or PassSettings()
    rows = index.split("all", 0.0, limit)
    quarantine, cut = Quarantine(len(rows), runtime.max_damaged), dict[str, Any]()
    tables = {name: SideCar.load(path) for name, path in ((GENERATED, rewards), (OTHER, other_rewards)) if path}
    if rewards is not None:
        asked = {index.entries[int(row)].key for row in rows}
        quarantine.take_over(tables[GENERATED].left_out, asked, where=f"{rewards}")
    elif reward_model is not None:
        judge = RewardModel.from_pretrained(
            reward_model, passes, critiques, protocol=protocol, device=pick_device(runtime)
        )
        scoring = Scoring(index, judge, reward_model, passes.groups_per_batch, runtime, given_kind=critique)
        own, cut = _ask(out, rows, scoring, compare, quarantine)
        tables = own | tables
    rows = usable(index, rows, quarantine)
    found = ranking_summary(index, rows, tables, critique=critique, seed=seed)
    if ANNOTATORS not in found.accuracy:
        raise DataError("the benchmark has no ranked pair", where=shards, given=f"{len(rows)} queries")
    macro = {scorer: macro_accuracy(report) for scorer, report in found.accuracy[ANNOTATORS].items()}
    summary = RewardBenchSummary(**vars(found), macro=macro, **cut, quarantined=quarantine.summary())
    table = benchmark_table(summary)
    (out / TABLE_FILE).write_text(markdown_table(table), encoding="utf-8")
    show(table_on_terminal(table))
    for path in write_official(out, index, rows, tables[GENERATED]) if GENERATED in tables else ():
        log.info("%s is for the benchmark's own script", path.name)
    return summary.write(out)


def _ask(
    out: Path, rows: np.ndarray, scoring: Scoring, compare: Sequence[str], quarantine: Quarantine
) -> tuple[dict[str, SideCar], dict[str, Any]]:
    """Tables of the model's rewards, as it is and asked in other ways, and what was cut for them."""
    rates = scoring.write(out / REWARDS, rows, quarantine=quarantine)
    cut = {name: rates[name] for name in ("responses_shortened", "critiques_cut")}
    return {GENERATED: SideCar.load(out / REWARDS)} | compare_ways(out, rows, scoring, compare, quarantine), cut


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse an unknown way of asking (ConfigError) before anything is scored."""
    unknown = sorted(set(settings.get("compare") or ()) - set(WAYS))
    if unknown:
        raise ConfigError(
            "unknown way to ask a reward model", where="compare", given=", ".join(unknown), expected=", ".join(WAYS)
        )


def compare_ways(
    out: Path, rows: np.ndarray, scoring: Scoring, ways: Sequence[str], quarantine: Quarantine
) -> dict[str, SideCar]:
    """Score the same rows in other ways; a way that makes no difference to this model or these data is left out."""
    tables: dict[str, SideCar] = {}
    entries = [scoring.index.entries[int(row)] for row in rows]
    for way in ways:
        folder = out / f"{REWARDS}_{way}"
        if way == "no_picture":
            if any(entry.num_images or entry.num_frames for entry in entries):
                replace(scoring, blind=True).write(folder, rows, quarantine=quarantine)
                tables[WAYS[way]] = SideCar.load(folder)
            else:
                log.warning("these queries have no pictures, so there is nothing to leave out")
        elif not scoring.judge.writes_critiques:
            log.warning("this reward model reads no critiques, so '%s' would be the same scores", way)
        elif way == "given":
            given = scoring.given(folder, rows, quarantine)
            tables |= {WAYS[way]: given} if len(given) else {}
        else:
            replace(scoring, judge=scoring.judge.without_critiques()).write(folder, rows, quarantine=quarantine)
            tables[WAYS[way]] = SideCar.load(folder)
    return tables


def macro_accuracy(report: Accuracy) -> float:
    """The mean of the categories' ACC, each counting once."""
    return float(np.mean([part.acc.mean for part in report.categories.values()]))


def benchmark_table(summary: RewardBenchSummary) -> list[list[str]]:
    """Rows of text, heading first: scorer, ACC and ACC+ with 95% intervals, the mean ACC of categories, by how much the
    first scorer is ahead in ACC on the same pairs, log loss and Brier score of the first one, ACC / ACC+ by category.
    """
    reports, differences = summary.accuracy[ANNOTATORS], summary.difference.get(ANNOTATORS, {})
    first, judge = next(iter(reports)), summary.judge
    categories = sorted({name for report in reports.values() for name in report.categories})
    rows = [["scorer", "ACC", "ACC+", "macro ACC", "first ahead by", "NLL, nats", "Brier", *categories]]
    for scorer, report in reports.items():
        own = [report.categories.get(name) for name in categories]
        cells = [f"{part.acc.mean:.3f} / {part.acc_plus.mean:.3f}" if part else "" for part in own]
        ahead = differences.get(scorer)
        sure = [judge.calibration.nll, judge.calibration.brier] if judge is not None and scorer == first else []
        rows.append([
            scorer, _with_interval(report.acc), _with_interval(report.acc_plus), f"{summary.macro[scorer]:.3f}",
            _with_interval(ahead.acc, sign="+") if ahead else "",
            *([_with_interval(found) for found in sure] or ["", ""]), *cells,
        ])  # fmt: skip
    return rows


def _with_interval(found: Estimate, *, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return format(found.mean, f"{sign}.3f")
    mean, low, high = (format(value, f"{sign}.3f") for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def table_on_terminal(rows: Sequence[Sequence[str]]) -> Table:
    """Show rows of text, heading first, without the categories, which do not fit on every terminal."""
    title = f"with 95% intervals; by category: {TABLE_FILE}"
    table = new_table(*rows[0][:3], title=title, right=tuple(rows[0][1:3]))
    for row in rows[1:]:
        add_row(table, *row[:3])
    return table
