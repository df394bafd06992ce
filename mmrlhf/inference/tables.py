"""One pass that fills a table: only what it lacks is asked, what cannot be used is left out, a kill costs seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.sharing import Ranks
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 30.0
Values = Mapping[str, float | str]
# A query with the table's values of each of its responses.
Measured = Iterable[tuple[PreferenceGroup, Sequence[Values]]]
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class TablePass(Generic[Batch]):
    """What a table is filled with.

    Args:
        columns, fingerprint: of the table.
        keys: of all queries that belong into it, over all ranks.
        batches: places in `keys` -> batches of what is measured; puts into the quarantine what cannot be read.
        measure: a batch -> values of its queries; leaves out what it puts into the quarantine.
        size: queries of a batch.
        title: of the progress bar.
        counted: columns whose responses above 0 are counted.
    """

    columns: Sequence[str]
    fingerprint: Mapping[str, Any]
    keys: Sequence[str]
    batches: Callable[[list[int]], Iterable[Batch]]
    measure: Callable[[Batch], Measured]
    size: int
    title: str
    counted: Sequence[str] = ()

    def fill(self, folder: Path, quarantine: Quarantine, ranks: Ranks, runtime: Runtime) -> dict[str, float]:
        """Ask for what the table in a folder lacks; counts of the whole table, and what this run did, over all ranks.

        A run that was stopped goes on with the queries that are missing; those that were left out are tried again.
        Counted are queries, responses and `counted`, whoever has filled them in; `responses_asked` and rates are this
        run's.

        Raises:
            DataError: the folder holds another table, or more is left out than the quarantine's budget.
        """
        writer = SideCarWriter(folder, columns=self.columns, fingerprint=self.fingerprint, rank=ranks.rank)
        done, places = writer.done_keys(), ranks.share(np.arange(len(self.keys)))
        missing = [int(place) for place in places if self.keys[place] not in done]
        if len(missing) < len(places):
            log.info("%d of %d queries were done before", len(places) - len(missing), len(places))
        started = written = time.monotonic()
        queries = responses = 0
        total = -(-len(missing) // self.size)
        for batch in track(self.batches(missing), self.title, total, enabled=runtime.progress):
            for group, values in self.measure(batch):
                for response, own in zip(group.responses, values, strict=True):
                    writer.add(group.key, response.hash, own)
                queries, responses = queries + 1, responses + len(values)
            if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                _write(writer, quarantine)
                written = time.monotonic()
        _write(writer, quarantine)
        seconds = max(time.monotonic() - started, 1e-9)
        share_quarantine(quarantine, ranks)
        rates = {"queries_per_second": round(queries / seconds, 3)}
        rates |= {"responses_per_second": round(responses / seconds, 2)}
        table = SideCar.load(folder, columns=self.counted)
        found = {"queries": len(table.keys()), "responses": len(table)}
        found |= {name: table.count_positive(name) for name in self.counted}
        return {**found, **ranks.total({"responses_asked": responses, **rates})}


def share_quarantine(quarantine: Quarantine, ranks: Ranks) -> None:
    """Wait until every rank is here; what any of them left out is then known to all.

    Raises:
        DataError: more than the budget, over all ranks.
    """
    for reasons in ranks.gather(quarantine.reasons):
        quarantine.update(reasons)
    quarantine.check("what a pass reads")


def _write(writer: SideCarWriter, quarantine: Quarantine) -> None:
    writer.flush()
    writer.leave_out(quarantine.own())
