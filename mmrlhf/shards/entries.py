"""Rows of the index as entries, made on demand from columns, so that millions of samples are cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from mmrlhf.shards.scan import SCHEMA


@dataclass(frozen=True)
class IndexEntry:
    """One sample: where its members lie and how big it is, without reading it.

    members: {suffix: (offset, size, crc32)}; image_sizes and video_size are (width, height) in pixels, (0, 0) where
    unreadable; duration in seconds; text_chars counts prompt and responses, critique_chars each response's longest
    critique; split_hash in [0, 1); rank_range is the worst rank minus the best. image_sizes, num_images and clips are
    those of the group, then of its responses: own_media says how many (pictures, videos) each response has of its own.
    num_frames, duration and video_size are of the first clip; more_clips: (frames, seconds, width, height) of others.
    form: `Conversation.form` of the prompt.
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
    form: str = ""
    more_clips: tuple[tuple[float, ...], ...] = ()
    own_media: tuple[tuple[int, int], ...] = ()

    @property
    def num_turns(self) -> int:
        """Turns of its conversation."""
        return self.form.count(" ") + 1


class Entries(Sequence[IndexEntry]):
    """Rows of the index as entries, made on demand from the columns' arrays."""

    def __init__(self, table: pa.Table) -> None:
        self._columns: dict[str, Any] = {name: _values(name, table.column(name)) for name in SCHEMA.names}

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
            more_clips=tuple(zip(*[iter(row.pop("more_clips"))] * 4, strict=True)),
            own_media=tuple(zip(*[iter(row.pop("own_media"))] * 2, strict=True)),
            **row,
        )

    def place(self, i: int) -> tuple[str, str, dict[str, tuple[int, int, int]]]:
        """(key, shard, {suffix: (offset, size, crc32)}) of one row, which is all that reading needs."""
        key, shard, names, *numbers = (self._columns[name][i] for name in SCHEMA.names[:6])
        return key, shard, dict(zip(names, zip(*numbers, strict=True), strict=True))


class _Texts:
    """A column of texts that differ: row -> str."""

    def __init__(self, values: pa.Array) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, i: int) -> str:
        return self._values[i].as_py()


class _Names:
    """Texts of which there are few different ones (shards, suffixes): row -> str, or rows -> list."""

    def __init__(self, values: pa.Array) -> None:
        encoded = values.dictionary_encode()
        self._names = np.array(encoded.dictionary.to_pylist(), dtype=object)
        self._numbers = encoded.indices.to_numpy()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: Any) -> Any:
        return self._names[self._numbers[i]]


class _Numbers:
    """A column of numbers: row -> int or float."""

    def __init__(self, values: pa.Array) -> None:
        self._array = values.to_numpy()

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: int) -> Any:
        return self._array[i].item()


class _Lists:
    """A column of lists: row -> list; far faster than pyarrow's own scalars."""

    def __init__(self, values: pa.ListArray) -> None:
        flat = values.values
        self._offsets = values.offsets.to_numpy()
        self._flat: Any = _Names(flat) if pa.types.is_string(flat.type) else flat.to_numpy()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: int) -> list[Any]:
        i = range(len(self))[i]
        return self._flat[self._offsets[i] : self._offsets[i + 1]].tolist()


def _values(name: str, column: pa.ChunkedArray) -> _Texts | _Names | _Numbers | _Lists:
    values = column.combine_chunks()
    if pa.types.is_list(values.type):
        return _Lists(values)
    if not pa.types.is_string(values.type):
        return _Numbers(values)
    return _Texts(values) if name == "key" else _Names(values)
