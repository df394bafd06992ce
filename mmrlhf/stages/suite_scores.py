"""Stage `suite_scores`: recorded answers to scores; no model, and a judge only where a benchmark needs one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.judging import judge_model
from mmrlhf.judging.judge_model import Judge, JudgeSettings
from mmrlhf.ranges import Count
from mmrlhf.stages.suite_answers import read_answers
from mmrlhf.suites.answering import MAX_PIXELS
from mmrlhf.suites.document_scores import write_results
from mmrlhf.suites.documents import DocumentStore
from mmrlhf.suites.harness import FORM, Harness
from mmrlhf.suites.marking import score_all, score_theirs, summarise
from mmrlhf.summaries.suites import SCHEMA, SuiteScores

# another number builds the stage anew, whatever `code` says
VERSION = 3
# settings that no result depends on
LIMITS = tuple(f"judge.{name}" for name in judge_model.LIMITS)
# what is in a finished artefact; checked before it is published
PROMISES = ("scores.jsonl", "metrics.json")


def run(
    out: Path,
    *,
    documents: Path,
    answers: Path,
    judge: JudgeSettings | None = None,
    harness: str = ".venv-benchmarks/bin/python",
    max_pixels: Count = MAX_PIXELS,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/scores.jsonl`: a score for every answer, or why there is none.

    Args:
        documents: the questions (stage `suite_documents`).
        answers: a policy's answers to them (stage `suite_answers`).
        judge: who judges, and within which limits.
        harness: Python of the environment that has lmms-eval, where its tasks are among the benchmarks.
        max_pixels: largest picture that a judge is shown; an answer about a larger one has no verdict.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = DocumentStore(documents)
    asked = store.read()
    counted = Judge(judge or JudgeSettings(), Path(runtime.verdicts), runtime.progress)
    said = read_answers(answers, asked)
    theirs = [document for document in asked if document.truth["form"] == FORM]
    ours = [document for document in asked if document.truth["form"] != FORM]
    found = score_all(ours, said, store, counted, max_pixels)
    if theirs:
        found += score_theirs(theirs, said, store, counted, Harness(harness), out)
    by_key = {f"{result.task}~{result.document}": result for result in found}
    results = [by_key[document.key] for document in asked]
    write_results(out, results)
    summary = SuiteScores(SCHEMA, summarise(results))
    use = counted.use()
    return (replace(summary, judge=use) if use.cached or use.asked else summary).write(out)
