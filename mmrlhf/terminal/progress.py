"""Progress with time left for every long loop of a stage.

Only rank 0 shows anything. `MMRLHF_PROGRESS=0` or `progress_switch(False)` turns everything off.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from mmrlhf.processes import Group
from mmrlhf.terminal.lines import open_line

T = TypeVar("T")


_switch: ContextVar[bool] = ContextVar("mmrlhf_progress", default=True)


@contextlib.contextmanager
def progress_switch(enabled: bool) -> Iterator[None]:
    """Turn every progress display inside the block on or off."""
    token = _switch.set(enabled)
    try:
        yield
    finally:
        _switch.reset(token)


def progress_enabled() -> bool:
    """Say whether this process should show progress: rank 0, not switched off by a block or by `MMRLHF_PROGRESS=0`."""
    wanted = os.environ.get("MMRLHF_PROGRESS", "1").lower() not in {"0", "false", "no", "off"}
    return wanted and _switch.get() and Group.from_environment().rank == 0


def track(iterable: Iterable[T], description: str, total: int | None = None, *, enabled: bool = True) -> Iterator[T]:
    """Yield the items of a loop and show how far it is, at what rate, and how long it will still take.

    Args:
        iterable: the items, passed on unchanged and lazily.
        description: what is being done, in a few words.
        total: how many items there will be; taken from `len()` where the iterable has one.
        enabled: show nothing when false (also see `progress_switch`).
    """
    if not (enabled and progress_enabled()):
        yield from iterable
        return
    if total is None:
        total = operator.length_hint(iterable) or None
    line = open_line(description, total, unit="items")
    try:
        for done, item in enumerate(iterable, start=1):
            yield item
            line.update(done)
    finally:
        line.close()
