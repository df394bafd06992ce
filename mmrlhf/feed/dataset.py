"""Rows of an index as encoded groups with their side-car columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.tensors import EncodedGroup
from mmrlhf.types import PreferenceGroup

if TYPE_CHECKING:  # transformers takes seconds to import
    from mmrlhf.shards.entries import IndexEntry
    from mmrlhf.shards.index import Index
    from mmrlhf.tokens.encode import Encoder

# Rows that are read to learn what text costs.
_SAMPLES = 32


class GroupDataset(Dataset[EncodedGroup]):
    """Row i of an index, encoded, with the numeric columns of side-car tables joined by (key, response hash).

    Args:
        index: the shards' index.
        encoder: turns a group into tokens.
        tables: side-car tables; each column goes into `EncodedGroup.columns` under its own name, (K,) float32.
        prepare: changes a group before it is encoded (`mmrlhf.shards.critique_tables`).
        cache_gib: memory for encoded groups; what fits is encoded once, however many epochs read it. Each worker
            process has a cache of its own.

    Raises:
        ConfigError: two tables have a column of the same name.
        DataError: from `[i]`: a damaged record, or a response that a table lacks.
    """

    def __init__(
        self,
        index: Index,
        encoder: Encoder,
        tables: Sequence[SideCar] = (),
        *,
        prepare: Callable[[PreferenceGroup], PreferenceGroup] | None = None,
        cache_gib: float = 0.0,
    ) -> None:
        self.index, self.encoder, self.tables = index, encoder, tuple(tables)
        self._prepare = prepare
        self._cache: dict[int, EncodedGroup] = {}
        self._free_bytes = int(cache_gib * 2**30)
        names = [name for table in tables for name in table.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"columns {twice} are in more than one side-car table",
                given=[str(table.folder) for table in tables],
                fix="load only the columns that are needed: SideCar.load(folder, columns=[...])",
            )

    def __len__(self) -> int:
        """Rows of the index."""
        return len(self.index)

    def __getitem__(self, row: int) -> EncodedGroup:
        return self.join(self.encode(row))

    def encode(self, row: int) -> EncodedGroup:
        """Read and encode a row, without the tables."""
        row = int(row)
        if row in self._cache:
            return self._cache[row]
        record = self.index.read(row)
        group = self.encoder(record if self._prepare is None else self._prepare(record))
        size = num_bytes(group)
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cache[row] = group
        return group

    def join(self, group: EncodedGroup) -> EncodedGroup:
        """Add the tables' columns."""
        hashes = [branch.response_hash for branch in group.branches]
        columns = dict(group.columns)
        for table in self.tables:
            columns |= table.lookup(group.key, hashes)
        return replace(group, columns=columns)

    def calibrate(self, rows: Sequence[int] | np.ndarray) -> None:
        """Let the encoder learn what text costs from a few of these rows, the same on every rank."""
        step = -(-len(rows) // _SAMPLES) or 1
        self.encoder.calibrate(self._samples([int(row) for row in rows[::step]]))

    def _samples(self, rows: Sequence[int]) -> Iterator[tuple[IndexEntry, PreferenceGroup]]:
        for row in rows:
            try:
                record = self.index.read(row)
            except DataError:  # damage is counted when the row is trained on
                continue
            yield self.index.entries[row], record if self._prepare is None else self._prepare(record)

    def cost(self, row: int) -> int:
        """Estimate a row's tokens from the index alone."""
        return self.encoder.estimate_tokens(self.index.entries[int(row)])


def num_bytes(group: EncodedGroup) -> int:
    """Memory of a group's tensors; the tokens are a small part of it, so their Python objects are not counted."""
    tensors = [group.prefix_ids, group.prefix_positions, *group.media.values()]
    for branch in group.branches:
        tensors += [branch.ids, branch.positions, branch.labels, *branch.media.values()]
    return sum(tensor.nbytes for tensor in tensors)
