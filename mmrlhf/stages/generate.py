"""Stage `generate`: the policy answers queries itself, several times each; the answers are the next round's responses.

Follows: the paper's open question (arXiv 2502.10391, section 7: whether small models can improve on their own), and
iterative DPO as in self-rewarding language models (arXiv 2401.10020). Differs in: a separate reward model is the judge.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.selection import Queries, Selection, usable
from mmrlhf.inference.settings import PassSettings
from mmrlhf.inference.sharing import share_pass
from mmrlhf.ranges import Count, Natural, NonNegative, Share, check_draws
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.responders import endpoint
from mmrlhf.responders.answered import DRAWN, about_the_query
from mmrlhf.responders.answerers import answerer_of
from mmrlhf.responders.asking import AnswerSettings, Asked, problems_of, text_of
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.responders.spending import Purse
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.summaries.evaluations import GenerateSummary
from mmrlhf.types import PreferenceGroup, Response

log = logging.getLogger(__name__)

SHARDS, ANSWERS = "shards", "answers"
Judge = Callable[[Mapping[str, Any], str], float]

# another number builds the stage anew, whatever `code` says
VERSION = 4
# settings that no result depends on
LIMITS = tuple(f"policy.{name}" for name in endpoint.LIMITS)
# what is in a finished artefact; checked before it is published
PROMISES = ("shards/manifest.json", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str | EndpointAnswerer,
    passes: PassSettings | None = None,
    judge: Judge | None = None,
    holdout: Share = 0.05,
    limit: Count | None = None,
    val_limit: Natural | None = 256,
    selection: Selection | None = None,
    num_samples: Natural = 4,
    least_distinct: Count = 2,
    temperature: NonNegative = 1.0,
    max_new_tokens: Count = 256,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/shards`: the same queries with the policy's distinct answers as responses that nobody has ranked.

    Several processes share a checkpoint's windows of queries. A run that was stopped goes on with those that are
    missing, and ends as if it had not been.

    Args:
        shards: the queries; their own responses are not used.
        policy: checkpoint folder or hub id, or an endpoint.
        passes: how the model runs.
        judge: (group's meta, answer) -> true quality, where it is known; for the report only.
        holdout, limit, val_limit: share of held-out queries; at most so many training and held-out queries.
        selection: which queries, as in training.
        num_samples, temperature, max_new_tokens, seed: of the answers.
        least_distinct: queries with fewer different answers are left out.
    """
    check_settings({"num_samples": num_samples, "temperature": temperature})
    index, passes = Index.load(shards), passes or PassSettings()
    rows = Queries(holdout, selection, limit, val_limit).rows(index)
    quarantine = Quarantine(len(rows), runtime.max_damaged)
    how = AnswerSettings(num_samples, temperature, max_new_tokens, seed)
    with share_pass(runtime) as ranks:
        asked = Asked(index, rows, how, out / ANSWERS, runtime, quarantine, ranks)
        said = answerer_of(policy, passes).answers(asked, Purse())
    if not ranks.leads:
        return {}
    answers = {key: [text_of(answer) for answer in each] for key, each in said.items()}
    counts, quality = _write(out, index, usable(index, rows, quarantine), answers, judge, least_distinct)
    summary = GenerateSummary(
        **counts,
        quality_of_distinct_answers=quality,
        quarantined=quarantine.summary(),
        problems=problems_of(said) if isinstance(policy, EndpointAnswerer) else None,
    )
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings under which a query's answers cannot differ (ConfigError)."""
    if settings["num_samples"] < 2:
        raise ConfigError(
            "answers to choose from have to differ",
            argument="num_samples", given=settings["num_samples"], expected="2 or more for each query",
        )  # fmt: skip
    check_draws("answers to a query", settings["num_samples"], settings["temperature"])


def _write(
    out: Path,
    index: Index,
    rows: np.ndarray,
    answers: Mapping[str, Sequence[str]],
    judge: Judge | None,
    least_distinct: int,
) -> tuple[dict[str, int], float | None]:
    """Write the queries that have enough different answers as shards; counts, and distinct answers' mean quality."""
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    counts = {"queries": len(rows), "queries_without_a_choice": 0, "answers": 0, "distinct_answers": 0}
    quality: list[float] = []

    def answered() -> Iterator[PreferenceGroup]:
        for row in rows:
            group = index.read(int(row))
            texts = answers[group.key]
            distinct = [text for text in dict.fromkeys(texts) if text.strip()]
            counts["answers"] += len(texts)
            counts["distinct_answers"] += len(distinct)
            truth = [judge(group.meta, text) for text in distinct] if judge is not None and group.meta else None
            quality.extend(truth or [])
            if len(distinct) < least_distinct:
                counts["queries_without_a_choice"] += 1
                continue
            yield _with_answers(group, distinct, [texts.count(text) for text in distinct], truth)

    write_shards(answered(), out / SHARDS)
    left_out = counts["queries_without_a_choice"]
    if left_out == len(rows):
        raise DataError(
            "the policy answers every query in one way only" if least_distinct > 1 else "the policy answers nothing",
            where=out,
            given=f"{len(rows)} queries",
            expected=f"at least one query with {least_distinct} different answers",
            fix="raise rounds.stages.generate.temperature or num_samples",
        )
    if left_out:
        log.warning("%d of %d queries got fewer than %d different answers", left_out, len(rows), least_distinct)
    return counts, float(np.mean(quality)) if quality else None


def _with_answers(
    group: PreferenceGroup, texts: Sequence[str], drawn: Sequence[int], quality: Sequence[float] | None
) -> PreferenceGroup:
    """The same query with the policy's answers, how often each was drawn, and their true qualities."""
    meta = about_the_query(group.meta) | {DRAWN: list(drawn)}
    meta |= {"quality": list(quality)} if quality is not None else {}
    responses = tuple(Response(text, model="policy") for text in texts)
    return replace(group, responses=responses, pairs=None, meta=meta)
