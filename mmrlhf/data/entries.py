"""Rows of the index as entries, made on demand from columns, so that millions of samples are cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import pyarrow as pa

from mmrlhf.data.scan import SCHEMA


@dataclass(frozen=True)
class IndexEntry:
    """One sample: where its members lie and how big it is, without reading it.

    members: {suffix: (offset, size, crc32)}; image_sizes and video_size are (width, height) in pixels, (0, 0) where
    unreadable; duration in seconds; text_chars counts prompt and responses, critique_chars each response's longest
    critique; split_hash in [0, 1); rank_range is the worst rank minus the best.
    """

    key: str
    shard: str
    members: Mapping[str, tuple[int, int, int]]
    num_responses: int
    num_pairs: int
    category: str
    num_images: int
    image_sizes: tuple[tuple[int, int], ...]
    num_frames: int
    duration: float
    video_size: tuple[int, int] | None
    text_chars: int
    critique_chars: int
    split_hash: float
    rank_range: int


class Entries(Sequence[IndexEntry]):
    """Rows of the index as entries, made on demand from the columns' arrays."""

    def __init__(self, table: pa.Table) -> None:
        self._columns: dict[str, Any] = {name: _values(table.column(name)) for name in SCHEMA.names}

    def __len__(self) -> int:
        return len(self._columns["key"])

    @overload
    def __getitem__(self, i: int) -> IndexEntry: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[IndexEntry]: ...
    def __getitem__(self, i: int | slice) -> IndexEntry | Sequence[IndexEntry]:
        if isinstance(i, slice):
            return [self[row] for row in range(*i.indices(len(self)))]
        row = {name: column[int(i)] for name, column in self._columns.items()}
        members = zip(row.pop("member_offsets"), row.pop("member_sizes"), row.pop("member_crc32"), strict=True)
        sides = row.pop("image_sizes")
        return IndexEntry(
            members=dict(zip(row.pop("member_names"), members, strict=True)),
            image_sizes=tuple(zip(sides[::2], sides[1::2], strict=True)),
            video_size=tuple(row.pop("video_size")) or None,
            **row,
        )

    def place(self, i: int) -> tuple[str, str, dict[str, tuple[int, int, int]]]:
        """(key, shard, {suffix: (offset, size, crc32)}) of one row, which is all that reading needs."""
        key, shard, names, *numbers = (self._columns[name][i] for name in SCHEMA.names[:6])
        return key, shard, dict(zip(names, zip(*numbers, strict=True), strict=True))


class _Texts:
    """A text column: row -> str."""

    def __init__(self, values: pa.Array) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, i: int) -> str:
        return self._values[i].as_py()


class _Numbers(_Texts):
    """A column of numbers: row -> int or float."""

    def __init__(self, values: pa.Array) -> None:
        super().__init__(values)
        self._array = values.to_numpy()

    def __getitem__(self, i: int) -> Any:
        return self._array[i].item()


class _Lists:
    """A column of lists: row -> list; far faster than pyarrow's own scalars."""

    def __init__(self, values: pa.ListArray) -> None:
        self._offsets = values.offsets.to_numpy()
        self._flat = values.values
        self._array = None if pa.types.is_string(self._flat.type) else self._flat.to_numpy()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: int) -> list[Any]:
        i = range(len(self))[i]
        start, stop = self._offsets[i], self._offsets[i + 1]
        part = self._flat[start:stop] if self._array is None else self._array[start:stop]
        return part.tolist()


def _values(column: pa.ChunkedArray) -> _Texts | _Lists:
    values = column.combine_chunks()
    if pa.types.is_list(values.type):
        return _Lists(values)
    return _Texts(values) if pa.types.is_string(values.type) else _Numbers(values)
