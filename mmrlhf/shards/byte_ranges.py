"""Byte ranges of shards, with few files open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from mmrlhf.errors import DataError

_MAX_OPEN_SHARDS = 64


def open_in(folder: Path, shard: str) -> int:
    """Open a shard of a folder for reading; returns the descriptor.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return os.open(folder / shard, os.O_RDONLY)
    except OSError as error:
        raise DataError("shard cannot be read", where=folder / shard, given=str(error)) from error


class ShardFiles:
    """Read-only file descriptors of the shards used last; `pread` needs no position, so threads and forks may share.

    Args:
        open_shard: a shard's name -> a descriptor.
        max_open: shards that stay open between reads. With 0 every read opens its shard anew: a cache then knows what
            is in use, and has the space of what it removes.
    """

    def __init__(self, open_shard: Callable[[str], int], *, max_open: int = _MAX_OPEN_SHARDS) -> None:
        self.open_shard, self._max_open = open_shard, max_open
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        with self._lock:
            descriptor = self._open.get(shard)
            if descriptor is None:
                descriptor = self._open[shard] = self.open_shard(shard)
            self._open.move_to_end(shard)
            blocks = []
            while size > 0 and (block := os.pread(descriptor, size, offset)):
                blocks.append(block)
                offset, size = offset + len(block), size - len(block)
            while len(self._open) > self._max_open:
                os.close(self._open.popitem(last=False)[1])
        return b"".join(blocks)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
