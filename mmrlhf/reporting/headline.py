"""The numbers of a run that come first: a flat mapping for tables and sweeps, and the cards on top of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf.reporting import sections
from mmrlhf.reporting.inputs import PairTable, StageResult, paired_answers
from mmrlhf.reporting.sections import Answers
from mmrlhf.terminal.lines import duration

NO_INTERVAL = "too few queries for an interval"


def headline(
    stages: Mapping[str, StageResult | None], pairs: PairTable | None, answers: tuple[Answers, Answers]
) -> dict[str, Any]:
    """Boil the run down to a flat mapping of numbers, for tables and sweeps; what is not known is absent."""
    numbers: dict[str, Any] = {**_ranking(stages["score"]), **_answering(stages, answers)}
    # what a beta would be is no finding of a run that has not come as far as training a policy with it
    numbers |= _margins(pairs, with_beta=stages["mmdpo"] is not None)
    seconds = [stage.seconds for stage in stages.values() if stage is not None and stage.seconds is not None]
    numbers["stage_seconds"] = round(sum(seconds), 1) if seconds else None
    return {name: value for name, value in numbers.items() if value is not None}


def _ranking(score: StageResult | None) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    accuracy = ((score.summary.get("heldout") or {}).get("accuracy") or {}) if score is not None else {}
    for judge, table in accuracy.items():
        for scorer, report in list(table.items())[:1]:
            for name in ("acc", "acc_plus"):
                found = sections.accuracy_interval(report, name, scorer)
                numbers[f"reward_{name}_{judge}"] = found.value
                numbers[f"reward_{name}_{judge}_low"], numbers[f"reward_{name}_{judge}_high"] = found.low, found.high
    return numbers


def _answering(stages: Mapping[str, StageResult | None], answers: tuple[Answers, Answers]) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    for name in ("quality", "reward", "kl", "length"):
        for when, stage in (("before", stages["evaluate_before"]), ("after", stages["evaluate"])):
            found = (stage.summary.get(name) or {}) if stage is not None else {}
            numbers[f"{name}_{when}"] = found.get("mean")
        gain = sections.difference(paired_answers(*answers, name)) if name in ("quality", "reward") else None
        if gain is not None:
            numbers[f"{name}_gain"] = gain.mean.mean
            numbers[f"{name}_gain_low"], numbers[f"{name}_gain_high"] = gain.mean.low, gain.mean.high
            numbers[f"{name}_better"], numbers[f"{name}_worse"] = gain.better, gain.worse
    return numbers


def _margins(pairs: PairTable | None, *, with_beta: bool) -> dict[str, float]:
    if pairs is None:
        return {}
    numbers = {"margin_mean": pairs.margins.mean(), "margin_share_negative": (pairs.margins < 0).mean()}
    if pairs.betas is not None and with_beta:
        numbers |= {"beta_mean": pairs.betas.mean(), "beta_max": pairs.betas.max()}
    return {name: float(value) for name, value in numbers.items()}


def build_cards(numbers: Mapping[str, Any], stages: Mapping[str, StageResult | None]) -> list[dict[str, str]]:
    """The cards at the top: what changed, how good the reward model is, what it cost."""
    cards = []
    for name, label in (("quality", "True quality of answers"), ("reward", "Reward of answers")):
        if f"{name}_gain" in numbers:
            gain, low, high = (numbers.get(f"{name}_gain{end}") for end in ("", "_low", "_high"))
            change = f"{numbers[f'{name}_before']:.2f} → {numbers[f'{name}_after']:.2f}"
            tone = "" if low is None or high is None else "good" if low > 0 else "bad" if high < 0 else ""
            interval = NO_INTERVAL if low is None or high is None else f"95% interval {low:+.3f} to {high:+.3f}"
            cards.append(_card(label, change, f"{gain:+.3f}, {interval}", tone=tone))
        elif f"{name}_after" in numbers:
            cards.append(_card(label, f"{numbers[f'{name}_after']:.2f}", "after training; nothing to compare with"))
    judges = [name.removeprefix("reward_acc_") for name in numbers if name.startswith("reward_acc_")]
    judges = [name for name in judges if not name.startswith("plus_") and not name.endswith(("_low", "_high"))]
    for part, label in (("acc", "Reward model, ACC"), ("acc_plus", "Reward model, ACC+")):
        for judge in judges[:1]:
            value, low, high = (numbers.get(f"reward_{part}_{judge}{end}") for end in ("", "_low", "_high"))
            interval = NO_INTERVAL if low is None or high is None else f"{low:.1%} to {high:.1%}"
            cards.append(_card(label, f"{value:.1%}", f"{interval}, held out, by {judge}"))
    if "kl_after" in numbers:
        distance = f"{numbers['kl_after']:.2f}"
        cards.append(_card("Distance from the reference", distance, "mean log-ratio of answers", "nats"))
    if "beta_mean" in numbers:
        negative = f"{numbers['margin_share_negative']:.1%} of margins are negative"
        cards.append(_card("Mean beta", f"{numbers['beta_mean']:.3f}", negative))
    if "stage_seconds" in numbers:
        count = sum(stage is not None and stage.seconds is not None for stage in stages.values())
        cards.append(_card("Time", duration(numbers["stage_seconds"]), f"{count} stages, built once"))
    return cards


def _card(label: str, value: str, detail: str, unit: str = "", tone: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "unit": unit, "detail": detail, "tone": tone}
