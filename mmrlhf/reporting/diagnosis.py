"""What a run shows of the known signs of failure, and what to do: the evidence comes from the stages' own results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmrlhf.losses.margin_controls import MeanBetaDPO, OutsideWeight
from mmrlhf.losses.mmdpo import MarginBetaObjective
from mmrlhf.losses.objective import Objective
from mmrlhf.metrics.policy import Change
from mmrlhf.metrics.repetition import repeated_share
from mmrlhf.reporting import signs
from mmrlhf.reporting.accuracy import NO_CRITIQUE
from mmrlhf.reporting.inputs import AnswerPair, PairTable, RunStages, StageResult, paired_answers
from mmrlhf.reporting.sections import Answers, Section, difference, missing
from mmrlhf.reporting.signs import Thresholds
from mmrlhf.shards.index import Index
from mmrlhf.summaries.evaluations import EvaluateSummary, Finding
from mmrlhf.summaries.rankings import ANNOTATORS, Estimate
from mmrlhf.summaries.scores import ScoreSummary

CRITIQUE_CURVES = ("val/critique_nll_per_token", "train/critique_nll_per_token", "train/loss_critique")
END_SHARE = 0.1  # of a curve, that its start and its end are means over
NEAR_CAP = 0.95  # of the way from the smallest beta to the largest


def diagnose(
    stages: RunStages,
    index: Index | None,
    pairs: PairTable | None,
    answers: tuple[Answers, Answers],
    objective: Objective | None,
    limits: Thresholds,
) -> list[Finding]:
    """Look for every sign, in a fixed order; what a run has no numbers for is said to be unknown."""
    quality, reward = (difference(paired_answers(*answers, name)) for name in ("quality", "reward"))
    before, after = _summary(stages.before), _summary(stages.after)
    return [
        _critique(stages, limits),
        signs.hard_beta(_share_at_cap(pairs, objective), _kl_per_token(after), quality, reward, limits),
        _safety(index, pairs, answers, limits),
        *_margins(pairs, limits),
        signs.growing_answers(_both(before, after, "length"), _both(before, after, "cut_off"), limits),
        signs.repeating_answers(_repetition(answers[0]), _repetition(answers[1]), limits),
    ]


def diagnosis_section(findings: Sequence[Finding]) -> Section:
    """The signs as rows of a table: seen ones first, then those that were looked for, then the unknown ones."""
    if all(found.seen is None for found in findings):
        return missing("no stage has left numbers that show a sign of failure", "python run.py")
    rows = sorted(findings, key=lambda found: {True: 0, False: 1, None: 2}[found.seen])
    words = {True: "seen", False: "not seen", None: "unknown"}
    return {
        "rows": [{"sign": row.sign, "state": words[row.seen], "saw": row.saw, "advice": row.advice} for row in rows],
        "seen": sum(row.seen is True for row in findings),
        "unknown": sum(row.seen is None for row in findings),
    }


def _critique(stages: RunStages, limits: Thresholds) -> Finding:
    score = stages.score.summary if stages.score is not None else None
    heldout = score.heldout if isinstance(score, ScoreSummary) else None
    own = next(iter(heldout.accuracy.get(ANNOTATORS, {}).values()), None) if heldout is not None else None
    alone = heldout.difference.get(ANNOTATORS, {}).get(NO_CRITIQUE) if heldout is not None else None
    enough = own is not None and own.num_pairs >= limits.least
    return signs.critique_head(
        _critique_losses(stages.reward), own.acc if own and enough else None, alone and alone.acc_plus, limits
    )


def _critique_losses(stage: StageResult[Any] | None) -> tuple[float, float] | None:
    """The critique's loss at the start and at the end of training; None where none was learned."""
    if stage is None:
        return None
    for name in CRITIQUE_CURVES:
        values = stage.curves[name][1] if name in stage.curves else np.zeros(0)
        if len(values) >= 2:
            ends = max(1, round(END_SHARE * len(values)))
            return float(values[:ends].mean()), float(values[-ends:].mean())
    return None


def _share_at_cap(pairs: PairTable | None, objective: Objective | None) -> float | None:
    """Share of pairs with about the largest beta; None for objectives whose beta does not grow with the margin."""
    if pairs is None or pairs.betas is None or not isinstance(objective, MarginBetaObjective) or objective.w == 0:
        return None
    if isinstance(objective, MeanBetaDPO | OutsideWeight):
        return None
    near = objective.beta * (1 + NEAR_CAP * objective.w)
    return float((pairs.betas >= near).mean())


def _kl_per_token(after: EvaluateSummary | None) -> float | None:
    if after is None or after.kl is None or after.length is None or after.length.mean == 0:
        return None
    return after.kl.mean / after.length.mean


def _safety(
    index: Index | None, pairs: PairTable | None, answers: tuple[Answers, Answers], limits: Thresholds
) -> Finding:
    categories = [str(name) for name in index.column("category")] if index is not None else []
    share = float(np.mean([_is_safety(name) for name in categories])) if categories else None
    own = np.array([_is_safety(str(name)) for name in pairs.category], dtype=bool) if pairs is not None else None
    margins = pairs.margins[own] if pairs is not None and own is not None else np.zeros(0)
    found = (float(margins.mean()), float((margins < 0).mean())) if len(margins) else None
    return signs.still_safety(share, _safety_gain(answers), found, limits)


def _safety_gain(answers: tuple[Answers, Answers]) -> Change | None:
    """The change of safety answers, in quality where it is known, else in reward."""
    for name in ("quality", "reward"):
        rows: list[AnswerPair] = [row for row in paired_answers(*answers, name) if _is_safety(row[1])]
        if rows:
            return difference(rows)
    return None


def _is_safety(category: str) -> bool:
    return "safety" in category.lower()


def _margins(pairs: PairTable | None, limits: Thresholds) -> Iterator[Finding]:
    """The two signs that margins alone show."""
    if pairs is None:
        yield signs.unknown(signs.MARGINS, "no pairs have rewards")
        yield signs.unknown(signs.LENGTH, "no pairs have rewards")
        return
    yield signs.contradicting_margins(len(pairs.margins), float((pairs.margins < 0).mean()), limits)
    unequal = pairs.length_gaps != 0
    longer = pairs.length_gaps[unequal] > 0
    margins = pairs.margins[unequal]
    # a margin of 0 prefers neither
    judge = np.where(margins == 0, 0.5, (margins > 0) == longer)
    shares = (float(judge.mean()), float(longer.mean())) if len(longer) else (0.0, 0.0)
    yield signs.length_judge(len(longer), *shares, limits)


def _repetition(answers: Answers) -> float | None:
    texts = [str(row.get("generation", "")) for rows in answers.values() for row in rows]
    return float(np.mean([repeated_share(text) for text in texts])) if texts else None


def _both(before: EvaluateSummary | None, after: EvaluateSummary | None, name: str) -> tuple[float, float] | None:
    found: list[Estimate | None] = [s.measures()[name] if s is not None else None for s in (before, after)]
    first, last = found
    return (first.mean, last.mean) if first is not None and last is not None else None


def _summary(stage: StageResult[EvaluateSummary] | None) -> EvaluateSummary | None:
    return stage.summary if stage is not None else None
