"""Stage `report_benchmarks`: a suite of benchmarks before and after training, as a table and a page.

Follows: the paper's table of 27 benchmarks in 10 dimensions and MM-RLHF-SafetyBench (arXiv 2502.10391, section 5).
Differs in: every difference is paired and has an interval over pictures, a p that knows the size of the table, and the
smallest difference that could have been seen; style and length stand beside every score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import wandb

from mmrlhf.callbacks.samples import wandb_loggers
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.ranges import Natural
from mmrlhf.suites.comparison import Pair, compare, pairs_by_task
from mmrlhf.suites.document_scores import read_results
from mmrlhf.suites.documents import DocumentStore
from mmrlhf.suites.published import with_published
from mmrlhf.suites.suite_page import PAGE, choose_examples, example_card, render
from mmrlhf.suites.table import comparison_rows, write_tables
from mmrlhf.summaries.suites import SuiteComparison, SuiteDocuments
from mmrlhf.summaries.summary import METRICS_FILE

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("benchmarks.html", "benchmarks.md", "metrics.json")


def run(
    out: Path,
    *,
    before: Path,
    after: Path,
    documents: Path,
    title: str = "Benchmarks before and after",
    num_examples: Natural = 2,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/benchmarks.html`, `out/benchmarks.md` and `out/metrics.json`.

    Args:
        before, after: scores of the two policies (stage `suite_scores`).
        documents: the questions, for the pictures of the examples, and where they are from.
        title: of the page.
        num_examples: answers that were fixed, and broken, shown for each benchmark.
        seed: chooses them.
    """
    out.mkdir(parents=True, exist_ok=True)
    old, new = read_results(Path(before)), read_results(Path(after))
    found, pairs = _with_sources(with_published(compare(old, new)), Path(documents)), pairs_by_task(old, new)
    if not found.benchmarks:
        given = "; ".join(f"{task}: {why}" for task, why in found.uncompared.items())
        raise DataError("no document has a score before and after", where=f"{before}, {after}", given=given)
    (out / PAGE).write_text(
        render(title, found, pairs, _examples(pairs, Path(documents), num_examples, seed)),
        encoding="utf-8", errors="backslashreplace",
    )  # fmt: skip
    write_tables(out, found)
    _log(out, found, runtime)
    return found.write(out)


def _with_sources(found: SuiteComparison, documents: Path) -> SuiteComparison:
    """The same with where the questions are from and which benchmarks could not be read."""
    path = documents / METRICS_FILE
    if not path.is_file():
        return found
    asked = SuiteDocuments.from_json(json.loads(path.read_text(encoding="utf-8")), where=path)
    return replace(found, sources=asked.sources, absent=asked.absent)


def _examples(pairs: Mapping[str, Sequence[Pair]], folder: Path, number: int, seed: int) -> list[dict[str, Any]]:
    store = DocumentStore(folder)
    known = {(document.task, document.name): document for document in store.read()}
    chosen = choose_examples(pairs, number, seed)
    return [example_card(pair, known.get((pair[0].task, pair[0].document)), store) for pair in chosen]


def _log(out: Path, found: SuiteComparison, runtime: Runtime) -> None:
    """The table and every difference to W&B, where that is on."""
    rows = comparison_rows(found)
    for target in wandb_loggers(runtime.loggers(out, "report_benchmarks")):
        numbers = {f"benchmarks/{task}": row.difference.mean for task, row in found.benchmarks.items()}
        numbers |= {f"dimensions/{n}": d.standardised.mean for n, d in found.dimensions.items() if d.standardised}
        table = wandb.Table(columns=list(rows[0]), data=[list(row) for row in rows[1:]])
        target.experiment.log({"benchmarks": table, **numbers})
