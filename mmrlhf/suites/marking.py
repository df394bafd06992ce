"""Answers to results: each by the form that its benchmark asks for; what has no score says why."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.errors import DataError, Lines
from mmrlhf.judging.judge_model import NO_VERDICT, Judge
from mmrlhf.judging.verdict_words import NoVerdict
from mmrlhf.media.images import decode_image
from mmrlhf.metrics.intervals import mean_interval
from mmrlhf.records.quarantine import reason_of
from mmrlhf.suites.answer_forms import FORMS
from mmrlhf.suites.answering import MAX_PIXELS, Said, pictures_up_to
from mmrlhf.suites.comparison import estimate, share
from mmrlhf.suites.document_scores import Result
from mmrlhf.suites.documents import Document, DocumentStore
from mmrlhf.suites.gateway import gateway
from mmrlhf.suites.harness import Harness, HarnessScore, known_tasks, needs_judge, read_orders, read_scores
from mmrlhf.suites.judged_forms import JUDGED
from mmrlhf.suites.objects import false_objects
from mmrlhf.suites.own_benchmarks import SAFETY
from mmrlhf.summaries.suites import BenchmarkScore

UNANSWERED = "no answer"
# a picture is shown to a judge with at most so many pixels a side
_SHOWN_SIDE = 1024
_EXAMPLES = 3


def blank(document: Document, said: Said) -> Result:
    """A result that is still without a score."""
    return Result(
        task=document.task,
        document=document.name,
        title=document.title,
        dimension=document.dimension,
        digest=document.digest,
        picture=document.picture,
        prompt=document.prompt,
        answer=said.text,
        score=None,
        words=len(said.text.split()),
        cut=said.cut,
        reason=said.reason or UNANSWERED,
    )


def score(document: Document, said: Said) -> Result:
    """The result of one answer whose form needs no judge."""
    result = blank(document, said)
    if said.reason:
        return result
    marks = FORMS[document.truth["form"]].mark(document.truth, said.text)
    verdict = ""
    if document.truth["form"] == "objects":
        named, false = false_objects(said.text, document.truth["present"])
        verdict = f"{named} objects, {false} false"
    return replace(result, score=marks.score, strict=marks.strict, parsed=marks.parsed, verdict=verdict, reason="")


def score_all(
    documents: Sequence[Document],
    said: Mapping[str, Said],
    store: DocumentStore,
    judge: Judge,
    max_pixels: int = MAX_PIXELS,
) -> list[Result]:
    """Results of documents, in their order; those that need a judge are asked benchmark by benchmark.

    A judge is shown no picture of more than `max_pixels`; the answer then has no verdict.

    Raises:
        DataError: more verdicts of a benchmark are missing than may.
        ConfigError, HubError: as `Judge.ask`.
    """
    found: dict[str, Result] = {}
    for task in dict.fromkeys(document.task for document in documents):
        own = [document for document in documents if document.task == task]
        judged = [document for document in own if document.truth["form"] in JUDGED]
        found |= {
            document.key: score(document, said[document.key]) for document in own if document.truth["form"] in FORMS
        }
        if judged:
            with pictures_up_to(max_pixels):
                found |= _judge_task(task, judged, said, store, judge)
    return [found[document.key] for document in documents]


def _judge_task(
    task: str, documents: Sequence[Document], said: Mapping[str, Said], store: DocumentStore, judge: Judge
) -> dict[str, Result]:
    found = {document.key: blank(document, said[document.key]) for document in documents}
    answered = [document for document in documents if not said[document.key].reason]
    requests, unseen = dict[str, list[list[dict[str, Any]]]](), dict[str, str]()
    for document in answered:
        try:
            requests[document.key] = _requests(document, said[document.key].text, store)
        except DataError as error:
            requests[document.key], unseen[document.key] = [], reason_of(error)
    words = judge.ask({f"{key} {n}": each for key, own in requests.items() for n, each in enumerate(own)})
    missing: dict[str, str] = {}
    for document in answered:
        key, own = document.key, requests[document.key]
        answers = [words[f"{key} {n}"] for n in range(len(own))]
        problem = unseen.get(key) or next((answer.problem for answer in answers if answer.problem), "")
        try:
            if problem:
                raise NoVerdict(problem)
            form = JUDGED[document.truth["form"]]
            marks, verdict = form.read(document.truth, said[key].text, [answer.text for answer in answers])
        except NoVerdict as error:
            missing[key] = str(error)
            found[key] = replace(found[key], reason=NO_VERDICT, verdict=str(error))
            for messages in own if not problem else ():
                judge.refuse(messages, NO_VERDICT)
            continue
        found[key] = replace(found[key], score=marks.score, strict=marks.strict, verdict=verdict, reason="")
    _check_missing(task, missing, len(answered), judge.settings.max_missing)
    return found


def _requests(document: Document, answer: str, store: DocumentStore) -> list[list[dict[str, Any]]]:
    texts = JUDGED[document.truth["form"]].ask(document.truth, document.prompt, answer)
    shown = [_picture_part(data) for media in store.media(document) for data in media.data] if _shows(document) else []
    return [
        [{"role": "user", "content": [*shown, {"type": "text", "text": text}] if shown else text}] for text in texts
    ]


def _shows(document: Document) -> bool:
    return bool(document.truth.get("shown"))


def _picture_part(data: bytes) -> dict[str, Any]:
    picture, buffer = decode_image(data, where="a picture for the judge"), io.BytesIO()
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    picture.save(buffer, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}


def score_theirs(
    documents: Sequence[Document],
    said: Mapping[str, Said],
    store: DocumentStore,
    judge: Judge,
    harness: Harness,
    out: Path,
) -> list[Result]:
    """Results of documents of lmms-eval's tasks, by their own code, with our judge in place of theirs.

    Raises:
        DataError: a task cannot be scored, or too many of its verdicts are missing.
        ConfigError: there is no environment of lmms-eval, or a task needs a judge and there is none.
    """
    tasks = dict.fromkeys(document.task for document in documents)
    if any(needs_judge(task) for task in tasks):
        _ = judge.asker
    answers: dict[str, dict[str, str]] = {task: {} for task in tasks}
    for document in documents:
        if not said[document.key].reason:
            answers[document.task][document.name] = said[document.key].text
    patterns = {task: own["verdict"] for task, own in known_tasks().items() if "verdict" in own}
    found: dict[str, Result] = {}
    with gateway(judge, patterns) as judged:
        harness.score(store.folder, out, answers, judged)
        orders = [order for order in read_orders(store.folder) if order.task in answers]
        scores = {order.task: read_scores(order.task, order.place(out), judged) for order in orders}
    for document in documents:
        theirs = scores[document.task].get(document.name, HarnessScore(None, UNANSWERED))
        found[document.key] = _their_result(document, said[document.key], theirs)
    for task in tasks:
        missing = {key: r.reason for key, r in found.items() if r.task == task and r.reason == NO_VERDICT}
        _check_missing(task, missing, len(answers[task]), judge.settings.max_missing)
    return list(found.values())


def _their_result(document: Document, said: Said, theirs: HarnessScore) -> Result:
    result = blank(document, said)
    if said.reason or theirs.score is None:
        return replace(result, reason=said.reason or theirs.reason)
    return replace(result, score=theirs.score, strict=theirs.score, reason="")


def _check_missing(task: str, missing: Mapping[str, str], asked: int, share_allowed: float) -> None:
    if len(missing) <= share_allowed * asked:
        return
    examples = [f"{key}: {why}" for key, why in list(missing.items())[:_EXAMPLES]]
    raise DataError(
        "verdicts are missing",
        where=task, given=Lines([f"{len(missing)} of {asked}", *examples]),
        expected=f"at most {share_allowed:.1%} (judge.max_missing); a missing verdict is no score",
        fix="run the same command again: verdicts that came are kept, and only the others are asked",
    )  # fmt: skip


def summarise(results: Sequence[Result]) -> dict[str, BenchmarkScore]:
    """Every benchmark's numbers, in the order of the results."""
    tasks = dict.fromkeys(result.task for result in results)
    return {task: _benchmark([result for result in results if result.task == task]) for task in tasks}


def _benchmark(results: Sequence[Result]) -> BenchmarkScore:
    scored = [result for result in results if result.score is not None]
    pictures = [result.picture for result in scored]
    strict = [result.strict for result in scored if result.strict is not None]
    known = bool(scored) and len(strict) == len(scored)
    return BenchmarkScore(
        title=results[0].title,
        dimension=results[0].dimension,
        documents=len(results),
        scored=len(scored),
        pictures=len(set(pictures)),
        left_out=dict(Counter(result.reason for result in results if result.score is None)),
        score=estimate(mean_interval([r.score for r in scored if r.score is not None], groups=pictures))
        if scored
        else None,
        strict=estimate(mean_interval(strict, groups=pictures)) if known else None,
        parsed=share([result.parsed for result in scored]) if scored else None,
        words=float(np.mean([result.words for result in results])),
        cut=float(np.mean([result.cut for result in results])),
        aggregates=_aggregates(scored),
    )


def _aggregates(scored: Sequence[Result]) -> Mapping[str, float]:
    """Numbers of a benchmark's own: MME's in hundreds, CHAIR_i, shares of safety verdicts, MMHal's hallucinations."""
    if not scored:
        return {}
    task = scored[0].task
    if task == "mme":
        return _mme(scored)
    if task == "mmhal_bench":
        return {"hallucination rate": float(np.mean([float(result.score or 0.0) < 3 for result in scored]))}
    if scored[0].verdict and scored[0].dimension == SAFETY:
        counts = Counter(result.verdict for result in scored)
        return {verdict: count / len(scored) for verdict, count in sorted(counts.items())}
    if task == "object_hal_bench":
        named, false = (sum(int(n) for n in each) for each in zip(*(_chair(r) for r in scored), strict=True))
        return {"CHAIR_i": false / named if named else 0.0}
    return {}


def _chair(result: Result) -> tuple[int, int]:
    named, _, false = result.verdict.partition(" objects, ")
    return int(named), int(false.split()[0])


def _mme(scored: Sequence[Result]) -> Mapping[str, float]:
    """Share of right answers plus share of pictures with both right, in hundreds."""
    pictures: dict[str, list[float]] = {}
    for result in scored:
        pictures.setdefault(result.picture, []).append(float(result.score or 0.0))
    right = [mark for marks in pictures.values() for mark in marks]
    both = [float(all(mark == 1.0 for mark in marks)) for marks in pictures.values()]
    return {"accuracy plus accuracy+": 100 * (float(np.mean(right)) + float(np.mean(both)))}
