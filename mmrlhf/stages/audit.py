"""Stage `audit`: draws the queries that people judge without a proposal; what a model proposes is measured by them.

They are drawn at random whatever a model thinks of them, are shown to people blind, and are never trained on
(`labelled` writes them apart).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf.annotation.queries_to_ask import QueriesToAsk
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.files import write_bytes
from mmrlhf.ranges import Count, Natural
from mmrlhf.shards.index import Index
from mmrlhf.summaries.triages import AuditSummary
from mmrlhf.triage.model_proposals import place_of

KEYS = "audit.txt"

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("audit.txt", "metrics.json")


def run(
    out: Path, *, shards: Path, size: Count = 120, always: Sequence[str] = ("safety",), seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:  # fmt: skip
    """Write `out/audit.txt`, a key on each line, for `stages.annotate.only`.

    Args:
        out: the folder to fill.
        shards: queries with answers.
        size: queries that are drawn; all where there are fewer.
        always: categories that people get in any case: a model never labels them, so they are no part of this.
        seed: of the draw.

    Raises:
        DataError: no query is left to draw from.
    """
    out.mkdir(parents=True, exist_ok=True)
    index = Index.load(shards)
    category = dict(zip(map(str, index.column("key")), map(str, index.column("category")), strict=True))
    keys = QueriesToAsk(index).keys
    pool = [key for key in keys if category[key] not in always]
    if not pool:
        raise DataError("nothing to audit: people get every query in any case", where=shards,
                        given=f"{len(keys)} queries, all of {', '.join(always)}")  # fmt: skip
    drawn = sorted(pool, key=lambda key: place_of("audit", seed, key))[:size]
    write_bytes(out / KEYS, "".join(f"{key}\n" for key in drawn).encode())
    left = Counter(category[key] for key in keys if category[key] in always)
    return AuditSummary(drawn=len(drawn), pool=len(pool), always=dict(left), digest=index.digest).write(out)
