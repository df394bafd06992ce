"""Stage `report`: everything that a run found out, as one page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from mmrlhf.callbacks.samples import log_samples, wandb_loggers
from mmrlhf.chain.provenance import reproduction, versions
from mmrlhf.chain.runtime import Runtime
from mmrlhf.losses.objective import Objective
from mmrlhf.ranges import Count, Natural
from mmrlhf.reporting import plots, sections
from mmrlhf.reporting.categories import CATEGORIES, write_categories
from mmrlhf.reporting.cuts import cut_line
from mmrlhf.reporting.diagnosis import diagnose, diagnosis_section
from mmrlhf.reporting.headline import build_cards, headline
from mmrlhf.reporting.inputs import (
    PairTable,
    RunStages,
    best_of_before,
    open_shards,
    read_answers,
    read_group,
    read_pairs,
    read_stage,
    reward_table,
)
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.reward_sections import annotation_section, judge_section
from mmrlhf.reporting.round_section import read_rounds, rounds_section, write_rounds
from mmrlhf.reporting.sample_cards import build_sample, choose_rows, sample_card
from mmrlhf.reporting.sections import Answers, Section
from mmrlhf.reporting.signs import Thresholds
from mmrlhf.reporting.training_section import training_section
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.summaries.evaluations import BestOf, EvaluateSummary
from mmrlhf.summaries.scores import AnnotationsSummary, MeanRewardsSummary, ScoreSummary
from mmrlhf.summaries.trainings import TrainingSummary
from mmrlhf.terminal.lines import duration
from mmrlhf.terminal.progress import track
from mmrlhf.trees import plain

PAGE = "report.html"
MOST_ENTRIES = 40  # of a mapping or list in the settings and results shown
ANNOTATED = 2000  # at most so many queries enter the agreement of annotators
CONTENTS = (
    ("overview", "Overview"),
    ("diagnosis", "Diagnosis"),
    ("policy", "Policy"),
    ("rounds", "Rounds"),
    ("reward", "Reward model"),
    ("judge", "Its judgement"),
    ("beta", "Margin to beta"),
    ("training", "Training"),
    ("samples", "Samples"),
    ("data", "Data"),
    ("run", "How it was made"),
)

# another number builds the stage anew, whatever `code` says
VERSION = 4
# what is in a finished artefact; checked before it is published
PROMISES = ("report.html", "metrics.json")


def run(
    out: Path,
    *,
    shards: str | Path | None = None,
    pack: str | Path | None = None,
    sft: str | Path | None = None,
    reward: str | Path | None = None,
    score: str | Path | None = None,
    reference: str | Path | None = None,
    mmdpo: str | Path | None = None,
    before: str | Path | None = None,
    after: str | Path | None = None,
    rounds: Sequence[str | Path] = (),
    others: Mapping[str, str | Path] | None = None,
    objective: Objective | None = None,
    diagnosis: Thresholds | None = None,
    title: str = "Multimodal preference alignment",
    num_samples: Natural = 12,
    max_queries: Count = 2000,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/report.html`, `out/categories.csv` and `out/metrics.json` from the artefacts of the other stages.

    What is not given, or not there, is left out of the page with a word on how to make it.

    Args:
        shards: the packed data, a folder or an address; samples, margins and the data section come from them.
        pack, sft, reward, reference, mmdpo: the stages' folders: times, settings, training curves.
        score: the score stage's folder, or a side-car of rewards.
        before, after: evaluations of the policy before and after preference training.
        rounds: evaluations after every round of self-improvement; `before` is where the first one started.
        others: further stages, name -> folder, whose times, settings and results are listed.
        objective: what turns margins into betas.
        diagnosis: from where on a number is a sign of failure.
        title: of the page.
        num_samples: queries shown with picture and responses.
        max_queries: at most so many queries enter the histograms of margins, betas and rewards.
        seed: chooses the queries that are shown.
    """
    out.mkdir(parents=True, exist_ok=True)
    stages = _read_stages(
        pack or shards, sft, reward, score, reference, mmdpo, evaluations=(before, after), others=others or {}
    )
    index = open_shards(shards)
    rewards = reward_table(score)
    pairs = read_pairs(index, rewards, objective, limit=max_queries, seed=seed) if index is not None else None
    answers = read_answers(stages.before), read_answers(stages.after)
    best = best_of_before(answers[0])
    samples: list[dict[str, Any]] = []
    if index is not None:
        samples = _samples(index, rewards, objective, answers, num_samples, seed, runtime)
        _log_samples(out, samples, runtime)
    page = _page(stages, index, rewards, pairs, answers, best, objective, seed)
    findings = diagnose(stages, index, pairs, answers, objective, diagnosis or Thresholds())
    page["diagnosis"] = diagnosis_section(findings)
    told = findings if any(finding.seen is not None for finding in findings) else None
    summary = replace(headline(stages, pairs, answers, best), findings=told)
    if rounds:
        rows = read_rounds(before, rounds)
        write_rounds(out / "rounds.csv", rows)
        page["rounds"], summary = rounds_section(rows), replace(summary, rounds=rows)
    write_categories(out / CATEGORIES, _tables(page))
    page["samples"] = _samples_section(samples)
    page["run"] = _run_section(stages, runtime.command)
    html = render(title, _subtitle(stages, index), page, build_cards(summary, stages))
    (out / PAGE).write_text(html, encoding="utf-8", errors="backslashreplace")
    return summary.write(out)


def _read_stages(
    pack: str | Path | None,
    sft: str | Path | None,
    reward: str | Path | None,
    score: str | Path | None,
    reference: str | Path | None,
    mmdpo: str | Path | None,
    *,
    evaluations: tuple[str | Path | None, str | Path | None],
    others: Mapping[str, str | Path],
) -> RunStages:
    further = (read_stage(name, path) for name, path in others.items())
    return RunStages(
        pack=read_stage("pack", pack, PackSummary),
        sft=read_stage("sft", sft, TrainingSummary),
        reward=read_stage("reward", reward, TrainingSummary),
        score=read_stage("score", score, ScoreSummary, AnnotationsSummary, MeanRewardsSummary),
        reference=read_stage("reference", reference),
        mmdpo=read_stage("mmdpo", mmdpo, TrainingSummary),
        before=read_stage("evaluate_before", evaluations[0], EvaluateSummary),
        after=read_stage("evaluate", evaluations[1], EvaluateSummary),
        others=[stage for stage in further if stage is not None],
    )


def _page(
    stages: RunStages,
    index: Index | None,
    rewards: SideCar | None,
    pairs: PairTable | None,
    answers: tuple[Answers, Answers],
    best: BestOf | None,
    objective: Objective | None,
    seed: int,
) -> dict[str, Section]:
    no_shards = sections.missing("the shards were not given", "python run.py stage=report")
    return {
        "policy": sections.policy_section(stages.before, stages.after, *answers, best),
        "reward": sections.reward_section(stages.score, pairs),
        "judge": judge_section(stages.score, index, rewards),
        "beta": sections.beta_section(pairs, objective),
        "training": training_section([stages.sft, stages.reward, stages.mmdpo], index),
        "data": no_shards
        if index is None
        else {**sections.data_section(index, stages.pack), **annotation_section(index, limit=ANNOTATED, seed=seed)},
    }


def _tables(page: Mapping[str, Section]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """All tables by category that the page holds."""
    tables = {"policy": page["policy"].get("categories", ())}
    tables |= {f"reward, by {judge['judge']}": judge["categories"] for judge in page["reward"].get("judges", ())}
    return tables | {"verdicts": page["judge"].get("verdicts", ())}


def _samples(
    index: Index,
    rewards: SideCar | None,
    objective: Objective | None,
    answers: tuple[Answers, Answers],
    number: int,
    seed: int,
    runtime: Runtime,
) -> list[dict[str, Any]]:
    """Samples of queries that were answered before and after, else of scored ones, else of any."""
    before, after = answers
    answered = sorted(before.keys() & after.keys()) or sorted(before.keys() | after.keys())
    rows = choose_rows(index, answered or sorted(rewards.keys() if rewards is not None else ()), number, seed=seed)
    built = []
    for row in track(rows, "samples for the report", enabled=runtime.progress):
        group = read_group(index, row)
        if group is not None:
            found = {"before": before.get(group.key, ()), "after": after.get(group.key, ())}
            built.append(build_sample(group, rewards=rewards, objective=objective, **found))
    return built


def _log_samples(out: Path, samples: Sequence[Mapping[str, Any]], runtime: Runtime) -> None:
    """Send the samples to W&B too, where that is on."""
    loggers = runtime.loggers(out, "report")
    if wandb_loggers(loggers):
        log_samples(loggers, samples)


def _samples_section(samples: Sequence[Mapping[str, Any]]) -> Section:
    if not samples:
        return sections.missing("the shards were not given", "python run.py stage=report")
    items = [sample_card(sample) for sample in samples]
    # `entries`, because a mapping's own `items` would win in the template.
    return {"entries": items, "categories": sorted({str(sample["category"]) for sample in samples})}


def _subtitle(stages: RunStages, index: Index | None) -> str:
    done = " → ".join(stage.name for stage in stages.known())
    return f"{len(index):,} ranked queries · {done}" if index is not None else done


def _run_section(stages: RunStages, command: str) -> Section:
    known = stages.known()
    times = {stage.name: stage.seconds for stage in known if stage.seconds is not None}
    newest = next((stage.record for stage in reversed(known) if stage.record.get("versions")), {})
    listed = [
        {
            "name": stage.name,
            "aside": duration(stage.seconds) if stage.seconds is not None else "not made by this run",
            "settings": _yaml(stage.record.get("settings")),
            "summary": _yaml(stage.content),
        }
        for stage in known
    ]
    lost = {stage.name: cut_line(stage.content) for stage in known}
    return {
        "lost": [f"{name}: {line}" for name, line in lost.items() if line],
        "times": plots.bars(times, label="seconds", format_value="{:,.1f}") if times else None,
        "reproduce": "\n".join(reproduction(command or "python run.py")),
        "versions": newest.get("versions") or versions(),
        "stages": listed,
    }


def _yaml(content: Mapping[str, Any] | None) -> str:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(_cut(plain(content)), Dumper=dumper, sort_keys=False, allow_unicode=True) if content else ""


def _cut(content: Any) -> Any:
    """Long lists and mappings by their first entries, with how many more the stage's metrics.json has."""
    if isinstance(content, Mapping):
        first = {name: _cut(value) for name, value in islice(content.items(), MOST_ENTRIES)}
        left = len(content) - len(first)
        return first | ({"...": f"{left} more in metrics.json"} if left else {})
    if isinstance(content, list):
        left = len(content) - MOST_ENTRIES
        return [_cut(value) for value in content[:MOST_ENTRIES]] + ([f"... {left} more in metrics.json"] * (left > 0))
    return content


def render(title: str, subtitle: str, page: Mapping[str, Section], cards: Sequence[Mapping[str, str]]) -> str:
    """Lay out the page; all text is escaped, plots are inserted as they are."""
    contents = [(anchor, name, "missing" in page.get(anchor, {})) for anchor, name in CONTENTS]
    contents = [entry for entry in contents if entry[0] != "rounds" or "rounds" in page]
    return (
        environment()
        .get_template("report.html.j2")
        .render(title=title, subtitle=subtitle, css=style(), contents=contents, cards=cards, **page)
    )
