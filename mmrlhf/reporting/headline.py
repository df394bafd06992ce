"""The numbers of a run that come first: a summary for tables and sweeps, and the cards on top of the report."""

from __future__ import annotations

from typing import TypedDict

from mmrlhf.metrics.policy import Change
from mmrlhf.reporting import sections
from mmrlhf.reporting.inputs import PairTable, RunStages, paired_answers
from mmrlhf.reporting.sections import Answers
from mmrlhf.summaries.evaluations import BestOf, EvaluateSummary, ReportSummary
from mmrlhf.summaries.rankings import ANNOTATORS, TRUTH, Accuracy, Estimate, Tables
from mmrlhf.terminal.lines import duration

NO_INTERVAL = "too few queries for an interval"


def headline(
    stages: RunStages, pairs: PairTable | None, answers: tuple[Answers, Answers], best: BestOf | None
) -> ReportSummary:
    """Boil the run down to the numbers for tables and sweeps; what is not known is None.

    Args:
        best: `best_of_before` of the answers.
    """
    scored = stages.score.summary if stages.score is not None else None
    by_annotators, by_truth = (
        _first(scored.heldout.accuracy if scored else {}, judge) for judge in (ANNOTATORS, TRUTH)
    )
    before, after = (stage.summary if stage is not None else None for stage in (stages.before, stages.after))
    quality, reward = (sections.difference(paired_answers(*answers, name)) for name in ("quality", "reward"))
    seconds = [stage.seconds for stage in stages.known() if stage.seconds is not None]
    return ReportSummary(
        reward_acc_annotators=by_annotators and by_annotators.acc,
        reward_acc_plus_annotators=by_annotators and by_annotators.acc_plus,
        reward_acc_truth=by_truth and by_truth.acc,
        reward_acc_plus_truth=by_truth and by_truth.acc_plus,
        quality_before=_mean(before, "quality"),
        quality_after=_mean(after, "quality"),
        quality_gain=_gain(quality),
        best_of=best and best.n,
        quality_best_of=best and best.quality,
        quality_better=quality and quality.better,
        quality_worse=quality and quality.worse,
        reward_before=_mean(before, "reward"),
        reward_after=_mean(after, "reward"),
        reward_gain=_gain(reward),
        reward_best_of=best and best.reward,
        reward_better=reward and reward.better,
        reward_worse=reward and reward.worse,
        kl_before=_mean(before, "kl"),
        kl_after=_mean(after, "kl"),
        length_before=_mean(before, "length"),
        length_after=_mean(after, "length"),
        # what a beta would be is no finding of a run that has not come as far as training a policy with it
        **_margins(pairs, with_beta=stages.mmdpo is not None),
        stage_seconds=round(sum(seconds), 1) if seconds else None,
    )


def _first(tables: Tables, judge: str) -> Accuracy | None:
    """The scorer that the table is about; baselines come behind it."""
    return next(iter(tables.get(judge, {}).values()), None)


def _mean(summary: EvaluateSummary | None, name: str) -> float | None:
    found = summary.measures()[name] if summary is not None else None
    return found.mean if found is not None else None


def _gain(found: Change | None) -> Estimate | None:
    return Estimate(*found.mean) if found is not None else None


class _Margins(TypedDict, total=False):
    margin_mean: float
    margin_share_negative: float
    beta_mean: float
    beta_max: float


def _margins(pairs: PairTable | None, *, with_beta: bool) -> _Margins:
    if pairs is None:
        return {}
    found: _Margins = {
        "margin_mean": float(pairs.margins.mean()),
        "margin_share_negative": float((pairs.margins < 0).mean()),
    }
    if pairs.betas is not None and with_beta:
        found["beta_mean"], found["beta_max"] = float(pairs.betas.mean()), float(pairs.betas.max())
    return found


def build_cards(found: ReportSummary, stages: RunStages) -> list[dict[str, str]]:
    """The cards at the top: what changed, how good the reward model is, what it cost."""
    cards = [
        *_answer_cards("True quality of answers", found.quality_before, found.quality_after, found.quality_gain),
        *_answer_cards("Reward of answers", found.reward_before, found.reward_after, found.reward_gain),
    ]
    if found.reward_acc_annotators is not None:
        judged = ANNOTATORS, found.reward_acc_annotators, found.reward_acc_plus_annotators
    else:
        judged = TRUTH, found.reward_acc_truth, found.reward_acc_plus_truth
    for label, part in zip(("Reward model, ACC", "Reward model, ACC+"), judged[1:], strict=True):
        if part is not None:
            interval = NO_INTERVAL if part.low is None or part.high is None else f"{part.low:.1%} to {part.high:.1%}"
            cards.append(_card(label, f"{part.mean:.1%}", f"{interval}, held out, by {judged[0]}"))
    if found.kl_after is not None:
        distance = f"{found.kl_after:.2f}"
        cards.append(_card("Distance from the reference", distance, "mean log-ratio of answers", "nats"))
    if found.beta_mean is not None:
        cards.append(
            _card("Mean beta", f"{found.beta_mean:.3f}", f"{found.margin_share_negative:.1%} of margins are negative")
        )
    if found.stage_seconds is not None:
        count = sum(stage.seconds is not None for stage in stages.known())
        cards.append(_card("Time", duration(found.stage_seconds), f"{count} stages, built once"))
    return cards


def _answer_cards(label: str, before: float | None, after: float | None, gain: Estimate | None) -> list[dict[str, str]]:
    if after is None:
        return []
    if gain is None or before is None:
        return [_card(label, f"{after:.2f}", "after training; nothing to compare with")]
    low, high = gain.low, gain.high
    tone = "" if low is None or high is None else "good" if low > 0 else "bad" if high < 0 else ""
    interval = NO_INTERVAL if low is None or high is None else f"95% interval {low:+.3f} to {high:+.3f}"
    return [_card(label, f"{before:.2f} → {after:.2f}", f"{gain.mean:+.3f}, {interval}", tone=tone)]


def _card(label: str, value: str, detail: str, unit: str = "", tone: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "unit": unit, "detail": detail, "tone": tone}
