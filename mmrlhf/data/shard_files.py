"""Byte ranges of shards, with few files open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from mmrlhf.errors import DataError

_MAX_OPEN_SHARDS = 64


class ShardFiles:
    """Read-only file descriptors of the shards used last; `pread` needs no position, so threads and forks may share.

    Args:
        locate: a shard's name -> its file on this machine.
    """

    def __init__(self, locate: Callable[[str], Path]) -> None:
        self.locate = locate
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
        descriptor = self._open[shard] = self._open_file(shard)
        return descriptor

    def _open_file(self, shard: str) -> int:
        for last in (False, True):
            path = self.locate(shard)
            try:
                return os.open(path, os.O_RDONLY)
            except OSError as error:
                # between locating and opening, another process may have made room in a cache
                if last or not isinstance(error, FileNotFoundError):
                    raise DataError("shard cannot be read", where=path, given=str(error)) from error
        raise AssertionError("unreachable")

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
