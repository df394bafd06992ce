"""From what a policy answered to numbers with intervals: quality, reward, distance from the reference, preference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf.metrics.intervals import mean_interval, share_interval
from mmrlhf.metrics.policy import k3_estimates, log_ratios
from mmrlhf.reporting.accuracy import ranking_tables, scored_groups
from mmrlhf.summaries.evaluations import AnswerNumbers, CategoryMeasure, Measure
from mmrlhf.summaries.rankings import Tables
from mmrlhf.types import PreferenceGroup


@dataclass(frozen=True)
class Answers:
    """One query's sampled answers (S) and annotated responses (K).

    texts, num_tokens, quality, reward, critique, logprob, reference_logprob: one each per answer;
    response_logprob, response_reference_logprob: one each per annotated response; group: the query without media.
    None: not asked for.
    """

    key: str
    category: str
    prompt: str
    texts: Sequence[str]
    num_tokens: Sequence[int]
    quality: Sequence[float] | None
    reward: Sequence[float] | None
    critique: Sequence[str] | None
    logprob: Sequence[float] | None
    reference_logprob: Sequence[float] | None
    response_logprob: Sequence[float] | None
    response_reference_logprob: Sequence[float] | None
    group: PreferenceGroup

    def log_ratios(self) -> list[float] | None:
        """log policy - log reference of each answer (S,)."""
        if self.logprob is None or self.reference_logprob is None:
            return None
        return log_ratios(self.logprob, self.reference_logprob).tolist()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The answers as rows of `samples.jsonl`; (key, sample) pairs them between two policies."""
        columns = ("quality", "reward", "critique", "logprob", "reference_logprob")
        for sample, text in enumerate(self.texts):
            row: dict[str, Any] = {"key": self.key, "sample": sample, "category": self.category}
            row |= {"prompt": self.prompt, "generation": text, "num_tokens": self.num_tokens[sample]}
            for name in columns:
                values = getattr(self, name)
                row[name] = values[sample] if values is not None else None
            yield row


Values = Callable[[Answers], Sequence[float] | None]
Row = tuple[str, str, float]  # key, category, value


def report_answers(
    answers: Sequence[Answers], *, max_new_tokens: int, is_reference: bool, is_sampled: bool, seed: int = 0
) -> AnswerNumbers:
    """Summarise a policy's answers.

    Args:
        is_reference: the policy is the reference itself; its implicit reward is 0 everywhere and ranks nothing.
        is_sampled: the answers were drawn at temperature 1, so that `kl_k3` is an estimate of the KL.

    Returns:
        `quality`, `reward`, `kl` (mean log-ratio of the answers, in nats), `kl_k3` (the same distance by the estimator
        of lower variance, Schulman 2020), `length` (tokens), `num_cut_off` and `cut_off` (how many and what share
        reached `max_new_tokens`): overall and per category, as mean, low, high (95%, over queries), None where
        not asked for; `preference`: accuracy tables of the implicit reward and of the log-probability alone.
    """
    num_cut = sum(number >= max_new_tokens for answer in answers for number in answer.num_tokens)

    def cut_off(answer: Answers) -> list[float]:
        return [float(number >= max_new_tokens) for number in answer.num_tokens]

    def kl_k3(answer: Answers) -> Sequence[float] | None:
        return k3_estimates(answer.log_ratios() or []).tolist() if is_sampled else None

    return AnswerNumbers(
        queries=len(answers),
        num_cut_off=num_cut,
        quality=_by_category(answers, lambda answer: answer.quality),
        reward=_by_category(answers, lambda answer: answer.reward),
        kl=_by_category(answers, lambda answer: answer.log_ratios()),
        kl_k3=_by_category(answers, kl_k3),
        length=_by_category(answers, lambda answer: answer.num_tokens),
        cut_off=_by_category(answers, cut_off, is_share=True),
        preference=_preference(answers, is_reference, seed),
    )


def _by_category(answers: Sequence[Answers], values: Values, *, is_share: bool = False) -> Measure | None:
    rows = [(a.key, a.category, value) for a in answers for value in values(a) or ()]
    if not rows:
        return None
    own: dict[str, list[Row]] = {}
    for row in rows:
        own.setdefault(row[1], []).append(row)
    overall, categories = _mean(rows, is_share), {name: _mean(own[name], is_share) for name in sorted(own)}
    return Measure(overall.mean, overall.low, overall.high, overall.queries, categories)


def _mean(rows: Sequence[Row], is_share: bool) -> CategoryMeasure:
    keys, _, values = zip(*rows, strict=True)
    found = (share_interval if is_share else mean_interval)(list(values), groups=keys)
    return CategoryMeasure(found.mean, found.low, found.high, len(set(keys)))


def _preference(answers: Sequence[Answers], is_reference: bool, seed: int) -> Tables:
    """How well the policy ranks the annotated responses, by implicit reward and by log-probability alone."""
    groups, scores = [], []
    for answer in answers:
        own: dict[str, Sequence[float]] = {}
        if answer.response_logprob is None:
            continue  # an endpoint's, which tells none
        if answer.response_reference_logprob is not None and not is_reference:
            own["implicit reward"] = log_ratios(answer.response_logprob, answer.response_reference_logprob).tolist()
        groups.append(answer.group)
        scores.append({**own, "log-probability": answer.response_logprob})
    return ranking_tables(scored_groups(groups, scores, seed=seed)) if groups else {}
