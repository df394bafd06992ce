"""Stage `rewardbench`: reward models and generative judges on a benchmark of ranked queries, in one table.

Follows: MM-RLHF-RewardBench (arXiv 2502.10391): ACC over pairs, ACC+ over queries, ties wrong, per category.
Differs in: always with intervals and paired differences; and with what length, the wording of the human critiques, and
the model itself without the picture achieve. A judge that was asked in words stands beside them, with how often the
order decided, what could not be read, and what it cost.
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
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.scoring import Scoring
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.sharing import pick_device
from mmrlhf.judging import judge_model
from mmrlhf.judging.judge_model import Judge, JudgeModel
from mmrlhf.judging.kept import Judged, read_judged, write_judged
from mmrlhf.judging.poll import poll
from mmrlhf.judging.polling import Polling
from mmrlhf.ranges import Count, Natural
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.reporting.accuracy import (
    GENERATED,
    GIVEN,
    NO_CRITIQUE,
    NO_PICTURE,
    OTHER,
    ranking_summary,
)
from mmrlhf.reporting.benchmark_page import page
from mmrlhf.reporting.benchmark_table import benchmark_table, official_table
from mmrlhf.reporting.official_results import write_official
from mmrlhf.reporting.official_scores import official_scores
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.sidecar_files import require_tables
from mmrlhf.stages.score import REWARDS
from mmrlhf.summaries.rankings import ANNOTATORS, Accuracy
from mmrlhf.summaries.scores import RewardBenchSummary
from mmrlhf.terminal.words import add_row, new_table, show
from mmrlhf.text import markdown_table
from mmrlhf.tokens.protocol import Protocol

log = logging.getLogger(__name__)

TABLE_FILE, PAGE = "rewardbench.md", "rewardbench.html"
WAYS = {"given": GIVEN, "no_critique": NO_CRITIQUE, "no_picture": NO_PICTURE}

# another number builds the stage anew, whatever `code` says
VERSION = 7
# settings that no result depends on
LIMITS = tuple(f"judge.{name}" for name in judge_model.LIMITS)
# what is in a finished artefact; checked before it is published
PROMISES = ("metrics.json", "rewardbench.md", "rewardbench.html")


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
    judge: JudgeModel | None = None,
    polling: Polling | None = None,
    other_judges: Mapping[str, Path] | None = None,
    limit: Count | None = None,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/metrics.json`, `out/rewardbench.md` and `out/rewardbench.html`.

    Without a reward model and a judge, the baselines alone.
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
        judge: a generative judge that is asked about the same queries; none where it names no model.
        polling: how it is asked.
        other_judges: name -> folder of another run of this stage with a judge, to stand in the same table.
        limit: at most this many queries.
        seed: of what is drawn for the report.

    Raises:
        DataError: no ranked pair; or a table, or the pass that makes one, left out more than the budget; or verdicts of
            the judge are missing.
        ConfigError: the judge would cost more than it may.
    """
    check_settings({"compare": compare, "judge": judge, "other_judges": other_judges})
    out.mkdir(parents=True, exist_ok=True)
    index, passes = Index.load(shards), passes or PassSettings()
    rows = index.split("all", 0.0, limit)
    quarantine, cut = Quarantine(len(rows), runtime.max_damaged), dict[str, Any]()
    tables = {name: SideCar.load(path) for name, path in ((GENERATED, rewards), (OTHER, other_rewards)) if path}
    if rewards is not None:
        asked = {index.entries[int(row)].key for row in rows}
        quarantine.take_over(tables[GENERATED].left_out, asked, where=f"{rewards}")
    elif reward_model is not None:
        model = RewardModel.from_pretrained(
            reward_model, passes, critiques, protocol=protocol, device=pick_device(runtime)
        )
        scoring = Scoring(index, model, reward_model, passes.groups_per_batch, runtime, given_kind=critique)
        own, cut = _ask(out, rows, scoring, compare, quarantine)
        tables = own | tables
    rows = usable(index, rows, quarantine)
    judged = _judged(out, index, rows, judge, polling or Polling(), quarantine, runtime)
    rows = usable(index, rows, quarantine)
    groups = [index.read(int(row), media=False) for row in rows] if other_judges else []
    for name, folder in (other_judges or {}).items():
        judged[f"judge {name}"] = read_judged(Path(folder), groups)
    compared = {name: own.margins for name, own in judged.items()}
    found = ranking_summary(index, rows, tables, compared=compared, critique=critique, seed=seed)
    if ANNOTATORS not in found.accuracy:
        raise DataError("the benchmark has no ranked pair", where=shards, given=f"{len(rows)} queries")
    macro = {scorer: macro_accuracy(report) for scorer, report in found.accuracy[ANNOTATORS].items()}
    official = official_scores(index, rows, tables, {name: own.scores for name, own in judged.items()})
    summary = RewardBenchSummary(
        **vars(found), macro=macro, **cut, quarantined=quarantine.summary(),
        judges={name: own.findings for name, own in judged.items()} or None, official=official or None,
    )  # fmt: skip
    _show(out, summary)
    for path in write_official(out, index, rows, tables[GENERATED]) if GENERATED in tables else ():
        log.info("%s is for the benchmark's own script", path.name)
    return summary.write(out)


def _judged(
    out: Path,
    index: Index,
    rows: np.ndarray,
    judge: JudgeModel | None,
    polling: Polling,
    quarantine: Quarantine,
    runtime: Runtime,
) -> dict[str, Judged]:
    """The judge's name in the table -> what it said; nothing where nobody judges. Left in `out/judge.json`, too."""
    if judge is None or judge.model is None:
        return {}
    asked = Judge(judge, Path(runtime.verdicts), runtime.progress)
    tally, findings = poll(index, rows, asked, polling, quarantine, out)
    quarantine.check(f"{index.folder}")
    groups = (index.read(int(row), media=False) for row in usable(index, rows, quarantine))
    write_judged(out, groups, tally, findings)
    return {f"judge {judge.model}": Judged(tally.margins, tally.scores, findings)}


def _show(out: Path, summary: RewardBenchSummary) -> None:
    """Write `rewardbench.md` and `rewardbench.html`, and show the table's beginning on the terminal."""
    table, official = benchmark_table(summary), official_table(summary)
    text = "\n".join(markdown_table(rows) for rows in (table, official) if rows)
    (out / TABLE_FILE).write_text(text, encoding="utf-8")
    (out / PAGE).write_text(page(summary), encoding="utf-8", errors="backslashreplace")
    show(table_on_terminal(table))


def _ask(
    out: Path, rows: np.ndarray, scoring: Scoring, compare: Sequence[str], quarantine: Quarantine
) -> tuple[dict[str, SideCar], dict[str, Any]]:
    """Tables of the model's rewards, as it is and asked in other ways, and what was cut for them."""
    rates = scoring.write(out / REWARDS, rows, quarantine=quarantine)
    cut = {name: rates[name] for name in ("responses_shortened", "critiques_cut")}
    return {GENERATED: SideCar.load(out / REWARDS)} | compare_ways(out, rows, scoring, compare, quarantine), cut


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse, before the scoring, what cannot be asked or told apart (ConfigError) and what is no table (DataError)."""
    require_tables({name: settings.get(name) for name in ("rewards", "other_rewards")})
    unknown = sorted(set(settings.get("compare") or ()) - set(WAYS))
    if unknown:
        raise ConfigError(
            "unknown way to ask a reward model", argument="compare", given=", ".join(unknown), expected=", ".join(WAYS)
        )
    judge, others = settings.get("judge"), settings.get("other_judges") or {}
    if judge is not None and judge.model in others:
        raise ConfigError(
            "two judges of one name, of which the table could hold one", argument="other_judges", given=judge.model,
            expected="another name than that of the judge which is asked now",
        )  # fmt: skip


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


def table_on_terminal(rows: Sequence[Sequence[str]]) -> Table:
    """Show rows of text, heading first, without the categories, which do not fit on every terminal."""
    title = f"with 95% intervals; by category: {TABLE_FILE}"
    table = new_table(*rows[0][:3], title=title, right=tuple(rows[0][1:3]))
    for row in rows[1:]:
        add_row(table, *row[:3])
    return table
