"""Stage `compare`: two runs of benchmarks, of any age, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.suites.comparison import compare
from mmrlhf.suites.document_scores import read_results
from mmrlhf.suites.table import write_tables

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("metrics.json", "benchmarks.md")


def run(out: Path, *, a: Path, b: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `out/benchmarks.md` and `out/metrics.json`: b minus a on the documents that both have a score of.

    Args:
        a, b: folders with `scores.jsonl` (stage `suite_scores`).
    """
    out.mkdir(parents=True, exist_ok=True)
    first, second = read_results(Path(a)), read_results(Path(b))
    found = compare(first, second)
    if not found.benchmarks:
        given = "; ".join(f"{task}: {why}" for task, why in found.uncompared.items())
        raise DataError(
            "the two runs have no scored document in common", where=f"{a}, {b}", given=given or "no results"
        )
    write_tables(out, found)
    return found.write(out)
