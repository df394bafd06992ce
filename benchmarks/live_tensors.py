"""The most bytes of tensors that live at once: what a GPU's allocator counts, on a CPU, and for fake tensors, too."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_OF_FSDP = ("fsdp", "c10d")
_LOOK_EVERY = 32


class LiveTensors(TorchDispatchMode):
    """Counts storages that operations make while it is entered, and those that are there before.

    Args:
        before: tensors that are there.
        resized: also look how large the storages are now, after FSDP2's operations and every so often: it keeps the
            tensors that it gathers parameters into, and gives their storage away and back.
        elsewhere: tensors that do not count, asked for at each such look: those that would lie on another device.
    """

    def __init__(
        self,
        before: Iterable[torch.Tensor] = (),
        *,
        resized: bool = False,
        elsewhere: Callable[[], Iterable[torch.Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._looked_at: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._resized, self._elsewhere = resized, elsewhere
        self._now = self.peak = self._operations = 0
        self._leave_out()
        for tensor in before:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        self._operations += 1
        if self._resized and (func.namespace in _OF_FSDP or self._operations % _LOOK_EVERY == 0):
            self._look()
        return found

    def _see(self, tensor: torch.Tensor) -> None:
        storage = _storage(tensor)
        place = storage._cdata
        if place in self._sizes:
            return
        self._sizes[place] = 0
        self._set(place, storage.nbytes())
        if self._resized:
            self._looked_at[place] = weakref.ref(storage)
        weakref.finalize(storage, self._gone, place)

    def _look(self) -> None:
        self._leave_out()
        for place, reference in self._looked_at.items():
            storage = reference()
            if storage is not None and storage.nbytes() != self._sizes[place]:
                self._set(place, storage.nbytes())

    def _leave_out(self) -> None:
        for tensor in self._elsewhere() if self._elsewhere is not None else ():
            storage = _storage(tensor)
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = 0
                weakref.finalize(storage, self._gone, storage._cdata)
            elif self._looked_at.pop(storage._cdata, None) is not None:
                self._set(storage._cdata, 0)

    def _set(self, place: int, size: int) -> None:
        self._now += size - self._sizes[place]
        self._sizes[place] = size
        self.peak = max(self.peak, self._now)

    def _gone(self, place: int) -> None:
        self._looked_at.pop(place, None)
        self._now -= self._sizes.pop(place)


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    """Where a tensor lies; a sharded tensor's own storage is as large as the whole, and is none."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
