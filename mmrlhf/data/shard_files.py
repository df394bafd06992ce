"""Byte ranges of shards, with few files open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from mmrlhf.errors import DataError

_MAX_OPEN_SHARDS = 64


class ShardFiles:
    """Read-only file descriptors of the shards used last; `pread` needs no position, so threads and forks may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        with self._lock:
            descriptor = self._open.get(shard)
            if descriptor is None:
                descriptor = self._add(shard)
            self._open.move_to_end(shard)
            blocks = []
            while size > 0 and (block := os.pread(descriptor, size, offset)):
                blocks.append(block)
                offset, size = offset + len(block), size - len(block)
        return b"".join(blocks)

    def _add(self, shard: str) -> int:
        if len(self._open) >= _MAX_OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        try:
            descriptor = os.open(self._folder / shard, os.O_RDONLY)
        except OSError as error:
            raise DataError("shard cannot be read", where=self._folder / shard, given=str(error)) from error
        self._open[shard] = descriptor
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
