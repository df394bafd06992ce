"""Stage `evaluate`: what a policy answers to held-out queries, how good that is, and how far it is from its reference.

Run once for the reference and once for the trained policy, over the same queries: the samples pair by (key, sample).
One model is on the device at a time; what each of them said is kept, so a run that was stopped repeats one at most.
"""

from __future__ import annotations

import gc
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.feed.selection import Queries, Selection, usable
from mmrlhf.inference.made_by import describe_pass, describe_source
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.parts import Parts
from mmrlhf.ranges import Count, Natural, NonNegative, Share, check_draws
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.reporting.answer_numbers import Answers, report_answers
from mmrlhf.responders import endpoint
from mmrlhf.responders.asking import AnswerSettings
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.responders.evaluation_passes import EvaluationPasses, Said
from mmrlhf.shards.index import Index
from mmrlhf.summaries.evaluations import EvaluateSummary
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

Judge = Callable[[Mapping[str, Any], str], float]

# another number builds the stage anew, whatever `code` says
VERSION = 1
# settings that no result depends on
LIMITS = tuple(f"policy.{name}" for name in endpoint.LIMITS)
# what is in a finished artefact; checked before it is published
PROMISES = ("samples.jsonl", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str | EndpointAnswerer,
    reference: Path | str | None = None,
    reward_model: Path | None = None,
    judge: Judge | None = None,
    passes: PassSettings | None = None,
    critiques: CritiqueSettings | None = None,
    holdout: Share = 0.05,
    limit: Count | None = 500,
    selection: Selection | None = None,
    max_new_tokens: Count = 256,
    temperature: NonNegative = 0.0,
    num_samples: Count = 1,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/metrics.json` and `out/samples.jsonl` for held-out queries.

    Args:
        shards: folder of shards.
        policy: checkpoint folder or hub id, or an endpoint, which tells no log-probabilities.
        reference: the policy that training started from; without it there is neither KL nor implicit reward.
        reward_model: folder that the reward stage wrote; scores the answers, with critiques of its own.
        judge: (group's meta, answer) -> true quality in [0, 1], where it is known (`mmrlhf.shapes.judge.quality`).
        passes: how models are asked.
        critiques: how the reward model writes critiques.
        holdout: share of held-out queries.
        limit: at most so many of them.
        selection: which of them are used, as in training.
        max_new_tokens: longest answer.
        temperature: of the answers; 0: the likeliest. The KL estimate is one only at temperature 1; at 0 the same
            number is the log-ratio on the most likely answers.
        num_samples: answers to each query; several need a temperature above 0.
        seed: draws answers.

    Raises:
        ConfigError: an endpoint with a reference, or several answers at temperature 0.
    """
    _check_reference(policy, reference)
    how = AnswerSettings(num_samples, temperature, max_new_tokens, seed)
    out.mkdir(parents=True, exist_ok=True)
    index = Index.load(shards)
    rows = Queries(holdout, selection, val_limit=limit).heldout(index).rows
    quarantine = Quarantine(len(rows), runtime.max_damaged)
    asked = EvaluationPasses(index, rows, passes or PassSettings(), runtime, quarantine, room=max_new_tokens + 1)
    made_by = {**describe_pass(index, rows, asked.passes), "policy": _describe(policy), **asdict(how)}
    said = _once(out, "answers", made_by, lambda: asked.answers(policy, how), quarantine)
    reference_said = _reference_said(out, asked, reference, said, made_by) if reference is not None else None
    verdicts = None
    if reward_model is not None:
        verdicts = _verdicts(out, asked, reward_model, said, critiques or CritiqueSettings(), made_by)
    answers = [
        _collect(index.read(int(row)), said, reference_said, verdicts, judge) for row in usable(index, rows, quarantine)
    ]
    _write_samples(out / "samples.jsonl", answers)
    report = report_answers(
        answers,
        max_new_tokens=max_new_tokens,
        is_reference=reference_said is said,
        is_sampled=temperature == 1.0,
        seed=seed,
    )
    summary = EvaluateSummary(
        **vars(report),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        quarantined=quarantine.summary(),
        problems=_problems(said) if isinstance(policy, EndpointAnswerer) else None,
    )
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that leave nothing to answer, or to measure (ConfigError), before anything is trained for it."""
    _check_reference(settings["policy"], settings.get("reference"))
    check_draws("answers to a query", settings.get("num_samples", 1), settings.get("temperature", 0.0))
    holdout, limit = settings["holdout"], settings.get("limit")
    if not 0 < holdout <= 1 or (limit is not None and limit < 1):
        raise ConfigError(
            "an evaluation needs held-out queries",
            where="data.holdout, scale.evaluate",
            given=f"holdout={holdout}, limit={limit}",
            expected="a holdout above 0, at most 1, and a limit of 1 or more (or none)",
            fix="hold some queries out, or stop before the evaluation: stage=mmdpo",
        )


def _check_reference(policy: object, reference: object) -> None:
    if isinstance(policy, EndpointAnswerer) and reference is not None:
        raise ConfigError(
            "an endpoint tells no log-probabilities, so its distance from a reference cannot be measured",
            argument="reference", given=reference, expected="null", fix="policy=endpoint says so for every evaluation",
        )  # fmt: skip


def _describe(policy: Path | str | EndpointAnswerer) -> Any:
    return policy.describe_requests() if isinstance(policy, EndpointAnswerer) else describe_source(policy)


def _reference_said(
    out: Path, asked: EvaluationPasses, reference: Path | str, said: Said, made_by: Mapping[str, Any]
) -> Said:
    source = {**made_by, "reference": describe_source(reference)}
    if source["reference"] == source["policy"]:
        return said
    return _once(out, "reference", source, partial(asked.logprobs, reference, said), asked.quarantine)


def _verdicts(
    out: Path,
    asked: EvaluationPasses,
    reward_model: Path,
    said: Said,
    critiques: CritiqueSettings,
    made_by: Mapping[str, Any],
) -> Said:
    source = {**made_by, "reward_model": describe_source(reward_model), "critiques": asdict(critiques)}
    return _once(out, "rewards", source, partial(asked.rewards, reward_model, said, critiques), asked.quarantine)


def _once(out: Path, name: str, made_by: Mapping[str, Any], make: Callable[[], Said], quarantine: Quarantine) -> Said:
    """Read a pass's result if an earlier run finished it, else make it and free the model's memory.

    What it left out is kept with it. Raises DataError as `Parts.read`.
    """
    parts = Parts(out, made_by, what="an evaluation")
    if (stored := parts.read(name)) is not None:
        log.info("%s: the pass was finished before", name)
        quarantine.update(stored["left_out"])
        quarantine.check("what an earlier run has left out")
        return stored["said"]
    said = make()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    parts.write(name, {"said": said, "left_out": quarantine.reasons})
    return said


def _problems(said: Said) -> dict[str, int]:
    return dict(Counter(why for own in said.values() for why in own["problems"] if why).most_common())


def _collect(
    group: PreferenceGroup, said: Said, reference: Said | None, verdicts: Said | None, judge: Judge | None
) -> Answers:
    own = said[group.key]
    return Answers(
        key=group.key,
        category=group.category,
        prompt=group.prompt.question,
        texts=own["texts"],
        num_tokens=own["num_tokens"],
        quality=[judge(group.meta, text) for text in own["texts"]] if judge is not None and group.meta else None,
        reward=verdicts[group.key]["reward"] if verdicts else None,
        critique=verdicts[group.key]["critique"] if verdicts else None,
        logprob=own.get("logprob"),
        reference_logprob=reference[group.key]["logprob"] if reference else None,
        response_logprob=own.get("response_logprob"),
        response_reference_logprob=reference[group.key]["response_logprob"] if reference else None,
        group=group.without_media(),
    )


def _write_samples(path: Path, answers: Sequence[Answers]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for answer in answers:
            for row in answer.rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
