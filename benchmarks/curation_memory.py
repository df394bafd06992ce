"""The whole stage `curate` on many drawn queries: time, and memory for each of them.

    python -m benchmarks.curation_memory                                # 200,000 queries
    python -m benchmarks.curation_memory --rows 10000000 --dim 32       # ten million, 25 minutes on two cores

Prints one JSON line. The pool is written as `stage=query_features` leaves it: text queries, one in a hundred nearly the
words of an earlier one; features are drawn, so they may be narrower than an encoder's, which changes time and disk, and
no memory. The stage runs in a process of its own. `anonymous_mib` is the most memory of its own that it had, `at` where
that was, `steps` the most in each function of the stage; `resident_mib` has mapped pages of files beside it, which a
machine takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn.functional import normalize

from benchmarks.measure import in_fresh_process, report
from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation.feature_parts import RECORD, ROWS, ROWS_PER_PART
from mmrlhf.curation.query_rows import FACTS, LINES, TABLE, QuerySet, write_queries
from mmrlhf.parts import Parts
from mmrlhf.records.query_sets import import_queries
from mmrlhf.stages import curate

THEMES, SAMPLE, COPY = 2_000, 30_000, 100
_NAME = "q00000000"
_TEXT = f"tell me about {_NAME} please"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=SAMPLE)
    parser.add_argument("--no-duplicates", action="store_true", help="leave out the search for near duplicates")
    parser.add_argument("--folder", type=Path, help="where the pool is written; a temporary folder by default")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point is not None:
        print(json.dumps(measured(**options.point)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_pool(Path(folder), options.rows, options.dim)
        point = {"folder": folder, "threads": options.threads, "sample": options.sample,
                 "duplicates": not options.no_duplicates}  # fmt: skip
        found = in_fresh_process("benchmarks.curation_memory", point)
    report(benchmark="curation_memory", rows=options.rows, dim=options.dim, threads=options.threads, **found)


def write_pool(folder: Path, rows: int, dim: int) -> None:
    """Write queries and features as the stage `query_features` leaves them."""
    write_many_queries(folder / "queries", rows)
    facts = json.loads((folder / "queries" / FACTS).read_text(encoding="utf-8"))
    made_by = {"rows": facts["digest"], "encoder": "drawn", "of": "text", "dim": dim, "rows_per_part": ROWS_PER_PART}
    parts = Parts(folder / "features", made_by, what="features")
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    themes = normalize(torch.randn(THEMES, dim, generator=generator), dim=1)
    sizes = rng.zipf(1.5, THEMES).clip(max=1000).astype(float)
    (folder / "features").mkdir()
    with (folder / "features" / ROWS).open("wb") as file:
        for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
            count = min(ROWS_PER_PART, rows - start)
            theme = torch.from_numpy(rng.choice(THEMES, count, p=sizes / sizes.sum()))
            part = normalize(
                themes[theme] + 0.8 * normalize(torch.randn(count, dim, generator=generator), dim=1), dim=1
            )
            copies = np.arange((COPY - 1 - start) % COPY, count, COPY)
            copies = copies[copies > 1]
            part[copies] = normalize(part[copies - 1] + 0.1 * part[copies - 2], dim=1)
            content = part.numpy().astype(np.float16).tobytes()
            file.write(content)
            # no two queries ask the same, word for word
            texts = np.arange(start + 1, start + count + 1, dtype=">u8").tobytes().hex()
            nothing = "0" * 16 * count
            note = {"features_crc32": f"{zlib.crc32(content):08x}", "hashes": nothing, "media": nothing, "texts": texts,
                    "left_out": {}, "texts_cut": 0}  # fmt: skip
            parts.write(f"part-{number:05d}", note)
    (folder / "features" / RECORD).write_text(json.dumps(made_by), encoding="utf-8")


def write_many_queries(folder: Path, rows: int) -> None:
    """Write one query as the importer reads it, and all others after its pattern."""
    root = folder.parent / "one"
    root.mkdir()
    (root / "s.jsonl").write_text(json.dumps({"id": _NAME, "prompt": _TEXT}) + "\n", encoding="utf-8")
    write_queries(folder, {"drawn": QuerySet(root, import_queries)})
    first = (folder / LINES).read_bytes().replace(b"%", b"%%")
    # one pattern for queries, one for copies, filled in with the row and the row that is asked about
    patterns = [
        first.replace(_TEXT.encode(), text.replace(_NAME, "q%(asked)08d").encode()).replace(
            _NAME.encode(), b"q%(row)08d"
        )
        for text in (_TEXT, f"now {_TEXT}")
    ]
    schema = pq.read_schema(folder / TABLE)
    kind = pq.read_table(folder / TABLE).column("type")[0].as_py()
    with (folder / LINES).open("wb") as lines, pq.ParquetWriter(folder / TABLE, schema) as writer:
        for start in range(0, rows, 1 << 16):
            numbers = range(start, min(start + (1 << 16), rows))
            content = [
                patterns[row % COPY == COPY - 1] % {b"row": row, b"asked": row - (row % COPY == COPY - 1)}
                for row in numbers
            ]
            sizes = np.array([len(line) for line in content], np.uint32)
            columns = {
                "key": [f"q{row:08d}" for row in numbers], "type": [kind] * len(sizes), "set": ["drawn"] * len(sizes),
                "offset": lines.tell() + np.r_[0, np.cumsum(sizes)[:-1]].astype(np.uint64), "size": sizes,
            }  # fmt: skip
            arrays = {name: pa.array(columns[name], schema.field(name).type) for name in schema.names}
            writer.write_table(pa.table(arrays, schema))
            lines.write(b"".join(content))
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    facts["rows"] = facts["sets"]["drawn"]["queries"] = rows
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def measured(folder: str, threads: int, sample: int, duplicates: bool) -> dict[str, Any]:
    """Run the stage and watch it."""
    torch.set_num_threads(threads)
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    started = time.perf_counter()
    with watched() as seen:
        found = curate.run(Path(folder, "out"), features=Path(folder), size=sample, duplicates=duplicates,
                           runtime=runtime)  # fmt: skip
    return {
        "wall_seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time(), 1),
        **seen.summary(),
        "fell": found["fell"],
        "sampled": found["groups"],
    }


@dataclass
class Watched:
    """The most memory of a process, in MiB, and the lines of this project that it was at."""

    anonymous: float = 0.0
    resident: float = 0.0
    at: str = ""
    before: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)

    def look(self, frame: FrameType | None) -> None:
        """Note what the process has now, and where in the stage a thread of it is."""
        with open("/proc/self/status", encoding="utf-8") as status:
            sizes = {line.split()[0]: int(line.split()[1]) / 1024 for line in status if line.endswith("kB\n")}
        lines = list(_lines(frame))
        self.before = self.before or sizes["RssAnon:"]
        self.resident = sizes["VmHWM:"]
        step = lines[0].rpartition(" ")[2] if lines else "outside"
        self.steps[step] = max(self.steps.get(step, 0.0), round(sizes["RssAnon:"]))
        if sizes["RssAnon:"] > self.anonymous:
            self.anonymous, self.at = sizes["RssAnon:"], " > ".join(lines)

    def summary(self) -> dict[str, Any]:
        """The numbers."""
        return {"anonymous_mib": round(self.anonymous), "before_mib": round(self.before),
                "resident_mib": round(self.resident), "at": self.at, "steps": self.steps}  # fmt: skip


def _lines(frame: FrameType | None) -> Iterator[str]:
    """The project's functions that a frame is in, from below the stage's `run` on."""
    found = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "mmrlhf" in path.parts:
            found.append(f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    inside = found[::-1]
    places = [place for place, each in enumerate(inside) if each.startswith("curate.py") and each.endswith(" run")]
    yield from inside[places[0] + 1 :] if places else []


@contextmanager
def watched(seconds: float = 0.1) -> Iterator[Watched]:
    """Look at this process so often, from a thread of its own."""
    seen, over, main_thread = Watched(), threading.Event(), threading.get_ident()

    def look() -> None:
        while not over.is_set():
            seen.look(sys._current_frames().get(main_thread))
            over.wait(seconds)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
