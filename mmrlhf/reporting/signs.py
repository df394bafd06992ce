"""Signs of known failures of preference training: from a few numbers to a finding with advice.

Follows: what MM-RLHF (arXiv 2502.10391) warns of: a critique head that learns nothing, a beta that grows too fast,
safety that needs data of its own; and what users of other trainers report: margins that contradict labels, a judge that
follows length, answers that grow or repeat. Differs in: each sign is a number against a threshold, which is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmrlhf.metrics.intervals import Interval
from mmrlhf.metrics.policy import Change
from mmrlhf.ranges import Count, NonNegative, Positive, Share, check_fields
from mmrlhf.summaries.evaluations import Finding
from mmrlhf.summaries.rankings import Estimate

CRITIQUE, BETA, SAFETY = "a critique head that does not learn", "a beta scaled too hard", "safety that does not move"
MARGINS, LENGTH = "margins that contradict labels", "a judge that follows length"
GROWTH, REPETITION = "answers that grow", "answers that repeat themselves"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """From where on a number is a sign of failure.

    Args:
        least: fewer pairs or queries say nothing.
        critique_drop: share by which the critique's loss has to fall while training. A head that learns loses more in
            its first steps, by the critiques' format alone.
        critique_known: nats a token; a head that writes critiques this well already need not learn more.
        cap_share: of pairs whose beta is at least 95% of the way from the smallest to the largest. Above one half most
            pairs have one beta, and their margins say no more than who is right.
        kl_per_token: nats that the policy may be away from its reference. At 0.5 it finds each of its own tokens 1.6
            times as likely as the reference does.
        safety_share: of the queries; half of what the paper's data have (1,999 of 29,997).
        negative_share: of pairs whose margin contradicts their label. Chance is 0.5; a judge that is worth a beta of
            its own is nearer to 0.2 than to that.
        length_excess: by how much more often the judge than the annotators may prefer the longer response.
        growth: of answers, after over before.
        cut_share: by how much the share of answers that were cut off may rise.
        repetition: by how much the share of an answer's four-word runs that it has said before may rise.
    """

    least: Count = 20
    critique_drop: Share = 0.1
    critique_known: NonNegative = 0.3
    cap_share: Share = 0.5
    kl_per_token: Positive = 0.5
    safety_share: Share = 0.033
    negative_share: Share = 0.35
    length_excess: Share = 0.15
    growth: Positive = 1.5
    cut_share: Share = 0.05
    repetition: NonNegative = 0.1

    def __post_init__(self) -> None:
        check_fields(self)


def unknown(sign: str, why: str) -> Finding:
    """Nothing to tell it from."""
    return Finding(sign, None, why, "")


def critique_head(
    losses: tuple[float, float] | None, accuracy: Estimate | None, gain: Estimate | None, limits: Thresholds
) -> Finding:
    """losses: of the critique at the start and at the end; accuracy: ACC by the annotators; gain: in ACC+ over the same
    model without critiques."""
    if losses is None:
        return unknown(CRITIQUE, "no reward model with critiques was trained")
    first, last = losses
    saw = [f"its loss went from {first:.3f} to {last:.3f} nats a token"]
    seen = last > limits.critique_known and last > first * (1 - limits.critique_drop)
    if accuracy is not None:
        saw.append(f"ACC {_number(accuracy)}")
        seen = seen or _low(accuracy) <= 0.5
    if gain is not None:
        saw.append(f"ACC+ {_number(gain, signed=True)} over the same model without critiques")
        seen = seen or _low(gain) <= 0
    advice = (
        "Read the critiques under Training. If they do not fit their responses: stages.reward.weights.critique=2, more "
        "epochs, or critiques in full sentences (data.critique=full). If they do and the scores do not follow: "
        "ablation=no_critique shows what the head knows without them."
    )
    return _finding(CRITIQUE, seen, saw, advice)


def hard_beta(
    at_cap: float | None, kl_per_token: float | None, quality: Change | None, reward: Change | None, limits: Thresholds
) -> Finding:
    """at_cap: share of pairs with about the largest beta; quality, reward: of answers, after minus before."""
    saw, seen = [], False
    if at_cap is not None:
        saw.append(f"{at_cap:.0%} of the pairs are at the largest beta")
        seen = at_cap > limits.cap_share
    if kl_per_token is not None:
        saw.append(f"{kl_per_token:.2f} nats a token from the reference")
        seen = seen or kl_per_token > limits.kl_per_token
    if quality is not None and reward is not None:
        saw.append(f"reward {reward.mean.mean:+.3f}, quality {quality.mean.mean:+.3f}")
        seen = seen or (_low(reward.mean) > 0 and _high(quality.mean) < 0)
    if not saw:
        return unknown(BETA, "no margins with a growing beta, and no answers with a reference")
    advice = (
        "Pairs at the largest beta: a smaller method.k, or margins in a smaller unit (method.margin_scale=2). Far from "
        "the reference, or quality falling while reward rises: a larger method.beta, a smaller method.w, fewer steps, "
        "method.sft_weight=0.1."
    )
    return _finding(BETA, seen, saw, advice)


def still_safety(
    share: float | None, gain: Change | None, margins: tuple[float, float] | None, limits: Thresholds
) -> Finding:
    """share: of queries on safety; gain: of their answers; margins: mean and share below 0 of their pairs."""
    if share is None or share == 0:
        return unknown(SAFETY, "no category with `safety` in its name")
    saw = [f"{share:.1%} of the queries are on safety"]
    if margins is not None:
        saw.append(f"their margins are {margins[0]:+.2f} on average, {margins[1]:.0%} below 0")
    if gain is None or gain.num_queries < limits.least:
        number = gain.num_queries if gain is not None else 0
        return unknown(SAFETY, "; ".join([*saw, f"{number} such queries were answered before and after"]))
    saw.append(f"their answers changed by {_number(gain.mean, signed=True)}")
    reasons = []
    if share < limits.safety_share:
        reasons.append("Give safety more places in an epoch: data/mixing=balanced.")
    if margins is not None and (margins[0] <= 0 or margins[1] > limits.negative_share):
        reasons.append("The judge does not see safety: more safety pairs for stage=reward, or margin=human.")
    if not reasons:
        reasons.append("There are pairs, and the judge agrees with them: more steps, or a smaller method.beta.")
    return _finding(SAFETY, _low(gain.mean) <= 0, saw, " ".join(reasons))


def contradicting_margins(num_pairs: int, negative: float, limits: Thresholds) -> Finding:
    """negative: share of the pairs whose margin is below 0."""
    if num_pairs < limits.least:
        return unknown(MARGINS, f"{num_pairs} pairs have margins")
    advice = (
        "Look at the pairs that are wrong by most, under How it judges. If the labels are wrong: pairs=margin_filtered "
        "or method.negative_margin=drop. If the judge is: method=dpo, or a better one before its margins set a beta."
    )
    saw = [f"{negative:.0%} of {num_pairs:,} margins contradict their labels"]
    return _finding(MARGINS, negative > limits.negative_share, saw, advice)


def length_judge(num_pairs: int, judge: float, labels: float, limits: Thresholds) -> Finding:
    """judge, labels: shares of the pairs of unequal length in which the longer response has the higher reward, and in
    which it is the chosen one."""
    if num_pairs < limits.least:
        return unknown(LENGTH, f"{num_pairs} pairs of unequal length have margins")
    advice = (
        "Policies trained on this judge will write more. Balance the lengths of its pairs; "
        "method=length_normalised_dpo and method=simpo take length out of the policy's side."
    )
    saw = [
        f"the judge prefers the longer response in {judge:.0%} of {num_pairs:,} pairs, the annotators in {labels:.0%}"
    ]
    return _finding(LENGTH, judge - labels > limits.length_excess, saw, advice)


def growing_answers(
    lengths: tuple[float, float] | None, cut: tuple[float, float] | None, limits: Thresholds
) -> Finding:
    """lengths: tokens an answer, before and after; cut: shares of answers that were cut off."""
    if lengths is None:
        return unknown(GROWTH, "no answers before and after training")
    saw, seen = [f"{lengths[0]:.1f} to {lengths[1]:.1f} tokens an answer"], lengths[1] > limits.growth * lengths[0]
    if cut is not None:
        saw.append(f"{cut[0]:.0%} to {cut[1]:.0%} cut off")
        seen = seen or cut[1] - cut[0] > limits.cut_share
    advice = (
        "See whether the judge follows length. method=length_normalised_dpo, method=simpo, a larger method.beta, or "
        "method.sft_weight=0.1 hold answers short; so does data whose chosen responses are not the longer ones."
    )
    return _finding(GROWTH, seen, saw, advice)


def repeating_answers(before: float | None, after: float | None, limits: Thresholds) -> Finding:
    """Mean share of an answer's four-word runs that it has said before."""
    if before is None or after is None:
        return unknown(REPETITION, "no answers before and after training")
    advice = (
        "The policy has left the text that it knew. A larger method.beta, a smaller optim.mmdpo.lr, "
        "method.sft_weight=0.1; and see that chosen responses end with their end token."
    )
    saw = [f"{before:.0%} to {after:.0%} of four-word runs repeat earlier ones"]
    return _finding(REPETITION, after - before > limits.repetition, saw, advice)


def _finding(sign: str, seen: bool, saw: list[str], advice: str) -> Finding:
    return Finding(sign, bool(seen), "; ".join(saw), advice if seen else "")


def _low(found: Estimate | Interval) -> float:
    return found.mean if found.low is None else found.low


def _high(found: Estimate | Interval) -> float:
    return found.mean if found.high is None else found.high


def _number(found: Estimate | Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    ends = "" if found.low is None or found.high is None else f" ({found.low:{sign}.3f} to {found.high:{sign}.3f})"
    return f"{found.mean:{sign}.3f}{ends}"
