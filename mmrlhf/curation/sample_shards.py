"""The chosen queries as shards: media read for the first time to be kept, and compared with what was encoded."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmrlhf.curation.encoding import media_digest
from mmrlhf.curation.feature_parts import Features
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import DataError, Lines
from mmrlhf.parts import remedy
from mmrlhf.ranges import whole
from mmrlhf.shards.writer import ShardSink
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

CHANGED = "media have changed since they were encoded"
_NUM_EXAMPLES = 5


def write_sample(
    folder: Path,
    queries: Queries,
    features: Features,
    rows: np.ndarray,
    note: Callable[[int], dict[str, object]],
    *,
    max_groups_per_shard: int,
    max_megabytes: float,
    max_damaged: float,
    progress: bool,
) -> dict[str, int]:
    """Write rows (n,) as shards with an index; finished shards of an interrupted run stay.

    Args:
        note: what `meta.curation` says of a row.
        max_damaged: share of the rows that may be unreadable by now; one may be in any case.

    Returns:
        Reason -> how many rows are lost for it.

    Raises:
        DataError: more of them are lost.
    """
    sink = ShardSink(folder, max_groups_per_shard=max_groups_per_shard, max_megabytes=max_megabytes)
    lost: Counter[str] = Counter()
    examples: list[str] = []
    done = 0
    for each in sink.notes:
        done += each["consumed"]
        lost.update(each["lost"])
    with closing(sink):
        before, lost_here = done, Counter[str]()
        for place, row in enumerate(track(rows[done:].tolist(), "writing the sample", len(rows) - done,
                                          enabled=progress), start=done + 1):  # fmt: skip
            try:
                sink.add(_read(queries, features, row, note))
            except DataError as error:
                lost_here[error.problem] += 1
                examples.append(f"{queries.where(row)}: {error.problem}")
                _check_lost(lost + lost_here, examples, len(rows), max_damaged, features.folder)
            if sink.full:
                sink.close_shard({"consumed": place - before, "lost": dict(lost_here)})
                before, lost, lost_here = place, lost + lost_here, Counter()
        if sink.pending:
            sink.close_shard({"consumed": len(rows) - before, "lost": dict(lost_here)})
        sink.finish()
    sink.clear_records()
    return dict(lost + lost_here)


def _read(queries: Queries, features: Features, row: int, note: Callable[[int], dict[str, object]]) -> PreferenceGroup:
    group = queries.read(row)
    if media_digest(group) != int(features.media[row]):
        raise DataError(CHANGED, where=queries.where(row))
    meta = {**group.meta, "curation": json.loads(json.dumps(note(row)))}
    return replace(group, category=str(queries.types[row]), meta=meta)


def _check_lost(lost: Counter[str], examples: list[str], rows: int, max_damaged: float, features: Path) -> None:
    budget = max(1, whole(max_damaged * rows))
    if lost.total() > budget:
        raise DataError(
            "chosen queries can no longer be read",
            given=Lines([*(f"{count} x {reason}" for reason, count in lost.items()), *examples[:_NUM_EXAMPLES]]),
            expected=f"at most {budget} of {rows} (runtime.max_damaged)",
            fix=f"bring the files back, or {remedy(features, 'run stage=query_features again on what is there now')}",
        )
