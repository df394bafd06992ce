"""Runs that are broken on purpose: each shows its own sign, and a whole run shows none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import report_data

from mmrlhf.composition.compose import compose
from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.margin_controls import MeanBetaDPO, OutsideWeight
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.losses.objective import Objective
from mmrlhf.metrics.ranking import accuracy_difference, accuracy_report
from mmrlhf.reporting import signs
from mmrlhf.reporting.accuracy import NO_CRITIQUE
from mmrlhf.reporting.diagnosis import diagnose, diagnosis_section
from mmrlhf.reporting.inputs import PairTable, RunStages, StageResult, open_shards, pair_betas
from mmrlhf.reporting.outcome import findings_table
from mmrlhf.reporting.sections import Answers
from mmrlhf.reporting.signs import Thresholds
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.summaries.evaluations import EvaluateSummary, Finding, Measure, ReportSummary
from mmrlhf.summaries.rankings import Accuracy, AccuracyDifference, Ranking

QUERIES = 60
STEPS = np.arange(100)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(report_data.make_groups(QUERIES), folder, max_groups_per_shard=64, max_megabytes=100)
    found = open_shards(folder)
    assert found is not None
    return found


def ranking(right: float, gain: float = 0.2) -> Ranking:
    """How a judge ranks that is right in a share of 200 pairs, and by so much better than without its critiques."""
    keys = [f"q{i // 2}" for i in range(200)]
    places = np.random.default_rng(0).permutation(200)

    def margins(share: float) -> np.ndarray:
        return np.where(places < share * 200, 1.0, -1.0)

    zero, own, other = np.zeros(200), margins(right), margins(right - gain)
    own_report = Accuracy.from_json(accuracy_report(keys, own, zero, ["long"] * 200), where="")
    against = AccuracyDifference.from_json(accuracy_difference(keys, own > 0, other > 0), where="")
    return Ranking(100, {"annotators": {"reward model": own_report}}, {"annotators": {NO_CRITIQUE: against}}, {}, None)


def pairs_of(margins: np.ndarray, lengths: np.ndarray, objective: Objective) -> PairTable:
    category = np.array([report_data.CATEGORIES[i % 5] for i in range(len(margins))])
    return PairTable(margins, lengths, pair_betas(margins, objective), margins, category, QUERIES)


def answered(text: str, quality: float, reward: float, safety: float, seed: int) -> Answers:
    """One answer for each query around a quality and a reward; safety answers around another quality."""
    noise = np.random.default_rng(seed).normal(0, 0.05, 150)
    rows: dict[str, list[dict[str, Any]]] = {}
    for i, shift in enumerate(noise):
        category = report_data.CATEGORIES[i % 5]
        level = safety if category == "safety" else quality
        row = {"category": category, "generation": text, "quality": level + shift, "reward": reward + shift}
        rows[f"q{i}"] = [row]
    return rows


def evaluated(kl: float, length: float, cut: float) -> StageResult[EvaluateSummary]:
    def measure(value: float) -> Measure:
        return Measure(value, value - 0.01, value + 0.01, QUERIES, {})

    summary = EvaluateSummary(
        queries=QUERIES, num_cut_off=0, quality=None, reward=None, kl=measure(kl), kl_k3=None, length=measure(length),
        cut_off=measure(cut), preference={}, temperature=0.0, max_new_tokens=64, quarantined=report_data.NONE_LEFT_OUT,
    )  # fmt: skip
    return StageResult("evaluate", Path("nowhere"), summary=summary)


class Run:
    """A run in which all is well; what a test changes breaks it."""

    def __init__(self, index: Index) -> None:
        rng = np.random.default_rng(1)
        self.index: Index | None = index
        self.objective: Objective = MMDPO(beta=0.1, w=0.5, k=0.5)
        self.margins = rng.normal(0.8, 1.0, 200)
        self.lengths = np.where(rng.random(200) < 0.5, 10, -10)
        self.ranking = ranking(0.8)
        self.critique_loss = 1.5 * np.exp(-STEPS / 20) + 0.2
        self.text = "There are three objects, and the red circle is left of a square."
        self.before = answered(self.text, quality=0.4, reward=0.0, safety=0.3, seed=2)
        self.after = answered(self.text, quality=0.6, reward=0.5, safety=0.6, seed=3)
        self.numbers = {"before": (0.0, 20.0, 0.0), "after": (3.0, 21.0, 0.01)}
        self.limits = Thresholds()

    def findings(self) -> dict[str, Finding]:
        curves = {"val/critique_nll_per_token": (STEPS, self.critique_loss)}
        nowhere = Path("nowhere")
        stages = RunStages(
            reward=StageResult("reward", nowhere, curves=curves),
            score=StageResult("score", nowhere, summary=report_data.scored(self.ranking)),
            before=evaluated(*self.numbers["before"]),
            after=evaluated(*self.numbers["after"]),
        )
        pairs = pairs_of(self.margins, self.lengths, self.objective)
        found = diagnose(stages, self.index, pairs, (self.before, self.after), self.objective, self.limits)
        return {finding.sign: finding for finding in found}

    def seen(self) -> set[str]:
        return {sign for sign, finding in self.findings().items() if finding.seen}


def flat_loss(run: Run) -> None:
    run.critique_loss = np.full(100, 1.5)


def chance(run: Run) -> None:
    run.ranking = ranking(0.5)


def no_better_than_without(run: Run) -> None:
    run.ranking = ranking(0.8, gain=0.0)


def all_at_the_cap(run: Run) -> None:
    run.margins = 20 * np.abs(run.margins) + 5


def far_away(run: Run) -> None:
    run.numbers["after"] = (18.0, 21.0, 0.01)


def gamed(run: Run) -> None:
    run.after = answered(run.text, quality=0.3, reward=0.9, safety=0.6, seed=3)
    run.before = answered(run.text, quality=0.5, reward=0.0, safety=0.3, seed=2)


def still(run: Run) -> None:
    run.after = answered(run.text, quality=0.6, reward=0.5, safety=0.3, seed=3)


def contradicted(run: Run) -> None:
    run.margins = run.margins - 0.9


def longer_wins(run: Run) -> None:
    run.margins = np.where(run.lengths > 0, 1.0, np.where(np.arange(200) % 5 < 3, -0.5, 0.5))


def wordy(run: Run) -> None:
    run.numbers["after"] = (3.0, 40.0, 0.01)


def never_ending(run: Run) -> None:
    run.numbers["after"] = (3.0, 21.0, 0.2)


def loops(run: Run) -> None:
    run.after = answered("The red circle is red. " * 12, quality=0.6, reward=0.5, safety=0.6, seed=3)


BROKEN: dict[Callable[[Run], None], set[str]] = {
    flat_loss: {signs.CRITIQUE},
    chance: {signs.CRITIQUE},
    no_better_than_without: {signs.CRITIQUE},
    all_at_the_cap: {signs.BETA},
    far_away: {signs.BETA},
    gamed: {signs.BETA},
    still: {signs.SAFETY},
    contradicted: {signs.MARGINS},
    longer_wins: {signs.LENGTH},
    wordy: {signs.GROWTH},
    never_ending: {signs.GROWTH},
    loops: {signs.REPETITION},
}


def test_a_whole_run_shows_nothing(index: Index) -> None:
    findings = Run(index).findings()
    assert len(findings) == 7 and all(finding.seen is False for finding in findings.values()), findings
    assert all(finding.saw and not finding.advice for finding in findings.values())


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_run_shows_its_own_sign_and_says_what_to_do(index: Index, broken: Callable[[Run], None]) -> None:
    run = Run(index)
    broken(run)
    findings = run.findings()
    assert {sign for sign, finding in findings.items() if finding.seen} == BROKEN[broken]
    (sign,) = BROKEN[broken]
    assert len(findings[sign].advice) > 40 and re.search(r"\d", findings[sign].saw)


def test_thresholds_decide(index: Index) -> None:
    run = Run(index)
    wordy(run)
    run.limits = Thresholds(growth=3.0)
    assert run.seen() == set()
    run.limits = Thresholds(negative_share=0.01, cap_share=0.0, kl_per_token=0.01, repetition=0.0)
    assert {signs.MARGINS, signs.BETA, signs.GROWTH} <= run.seen()
    for bad in ({"growth": 0.0}, {"cap_share": 1.5}, {"least": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Thresholds(**bad)


def test_a_judge_may_follow_length_where_the_annotators_do(index: Index) -> None:
    run = Run(index)
    run.lengths = np.where(np.arange(200) % 10 < 9, 10, -10)
    run.margins = np.where(np.arange(200) % 20 < 19, 1.0, -0.5)
    assert signs.LENGTH not in run.seen()


def test_a_head_that_knows_critiques_already_need_not_learn(index: Index) -> None:
    run = Run(index)
    run.critique_loss = np.full(100, 0.25)
    assert run.seen() == set()


def test_safety_advice_follows_from_what_is_missing(index: Index) -> None:
    """A fifth of these queries is on safety; so it is the judge or the training, not the data."""
    run = Run(index)
    still(run)
    assert "more steps" in run.findings()[signs.SAFETY].advice
    run.margins = np.where(np.arange(200) % 5 == report_data.CATEGORIES.index("safety"), -0.5, run.margins)
    assert "judge does not see safety" in run.findings()[signs.SAFETY].advice
    run.limits = Thresholds(safety_share=0.5)
    assert "data/mixing=balanced" in run.findings()[signs.SAFETY].advice


def test_what_cannot_be_told_is_said_to_be_unknown(index: Index) -> None:
    found = diagnose(RunStages(), None, None, ({}, {}), None, Thresholds())
    assert "missing" in diagnosis_section(found)
    assert [finding.seen for finding in found] == [None] * 7 and all(finding.saw for finding in found)
    run = Run(index)
    run.margins, run.lengths = run.margins[:10], run.lengths[:10]
    few = run.findings()
    assert few[signs.MARGINS].seen is None and few[signs.LENGTH].seen is None
    for objective in (DPO(), OutsideWeight(), MeanBetaDPO()):  # none has a beta that grows with a pair's margin
        run.objective = objective
        assert "largest beta" not in run.findings()[signs.BETA].saw


def test_all_advice_names_settings_that_exist(index: Index) -> None:
    words: set[str] = set()
    for broken in BROKEN:
        run = Run(index)
        broken(run)
        for limits in (Thresholds(), Thresholds(safety_share=0.5)):
            run.limits = limits
            for finding in run.findings().values():
                words |= set(re.findall(r"[a-z_/.]+=[a-z_0-9.]*[a-z_0-9]", finding.advice))
                words |= {f"{key}=1" for key in re.findall(r"\b(?:method|optim)\.[a-z_.]+[a-z]\b(?!=)", finding.advice)}
    assert len(words) > 8
    while words:  # one of each section is typed together, for `method=NAME` has other settings
        typed = {re.split(r"[./=]", word)[0]: word for word in sorted(words)}
        compose(list(typed.values()))
        words -= set(typed.values())


def test_findings_survive_json_the_page_and_the_terminal(index: Index) -> None:
    run = Run(index)
    wordy(run)
    findings = list(run.findings().values())
    summary = ReportSummary(findings=findings)
    assert ReportSummary.from_json(summary.to_json(), where="") == summary
    table = findings_table(summary)
    assert table is not None and table.row_count == 1
    assert findings_table(replace(summary, findings=[])) is None
    section = diagnosis_section(findings)
    assert (section["seen"], section["unknown"]) == (1, 0) and section["rows"][0]["sign"] == signs.GROWTH
