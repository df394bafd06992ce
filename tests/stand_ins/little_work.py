"""A bound on the work of a block whose input is long: for what must not grow with its square, no measure of speed."""

from __future__ import annotations

from contextlib import AbstractContextManager

from mmrlhf.processes import work_limit


def little_work() -> AbstractContextManager[None]:
    """Raise TimeoutError where the block computes for two seconds: milliseconds are needed, or minutes.

    It is processor time of this process, so what else a machine does is no reason.
    """
    return work_limit(2.0)
