"""Reading records at a million rows: seconds and memory of ranked rows, and of pairs that are put together by query.

    python -m benchmarks.reading
    python -m benchmarks.reading --rows 100000

Prints one JSON line. The rows are written first, as JSON lines with paths of pictures, which are not read: three ranked
answers each, or pairs, three of a query, a third of the file apart, so that every query waits for its last row. Each
way runs in a process of its own; memory is the most that it holds beyond what it held before (`rss_mib`), seconds are
of its CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import in_fresh_process, report
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.ranked_rows import import_ranked
from mmrlhf.records.sources import file_source

MILLION = 1_000_000
WAYS = {"ranked": import_ranked, "pairs": import_pairs}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point is not None:
        print(json.dumps(read(options.point["way"], Path(options.point["file"]))))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            path = Path(folder) / f"{way}.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows(way, options.rows))
            size = round(path.stat().st_size / 2**20)
            point = {"way": way, "file": str(path)}
            found[way] = {"file_mib": size, **in_fresh_process("benchmarks.reading", point)}
            path.unlink()
    report(benchmark="reading", rows=options.rows, **found)


def rows(way: str, number: int) -> Iterator[dict[str, Any]]:
    """Rows of about 300 characters."""
    for n in range(number):
        query = n % (number // 3 or 1) if way == "pairs" else n
        asked = f"What is shown in picture {query}, what is it made of, what is it used for? Say it in two sentences."
        row = {"id": f"q{query}", "image": f"long/{query}.jpg", "prompt": asked}
        answers = [
            f"Answer {place} to question {n}: something of metal, which people cut paper with." for place in "abc"
        ]
        if way == "pairs":
            yield {**row, "chosen": answers[0], "rejected": answers[1]}
        else:
            yield {**row, "responses": [{"text": text, "rank": rank} for rank, text in enumerate(answers, start=1)]}


def read(way: str, path: Path) -> dict[str, float]:
    """Read a file to its end, as `pack` does: one draft after the other."""
    before, started = _peak_mib(), time.process_time()
    drafts = sum(1 for _ in WAYS[way](file_source(path)))
    return {
        "drafts": drafts,
        "cpu_seconds": round(time.process_time() - started, 1),
        "rss_mib": round(_peak_mib() - before, 1),
    }


def _peak_mib() -> float:
    """The most that this process has held so far; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
