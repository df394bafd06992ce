"""Steps in order from a starting point, prepared by worker processes or here: what a Trainer iterates.

What keeps a resume exact under Lightning 2.6:

- the loader has a length; without one, Lightning fetches a step ahead and resumes one late;
- its generator reads where to begin at the first `next()`, because Lightning calls `iter()` before it restores.
"""

from __future__ import annotations

import atexit
import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mmrlhf.feed.prefetch import ShardPrefetch
from mmrlhf.processes import ignore_preemption
from mmrlhf.tensors import StepBatch

# A worker that hangs (on a dead network mount, in a codec) becomes an error after this many seconds.
_WORKER_TIMEOUT = 1800


class StepLoader:
    """Yields StepBatches from a starting point to the end; its length is that of a whole pass.

    Lightning takes it as it is: it is no DataLoader, so no sampler is put into it.

    Args:
        steps: makes the data set of steps for the rank that iterates.
        start: first step, asked for when the first step is.
        length: steps of a whole pass.
        num_workers: processes that prepare steps ahead, in order.
        prefetch: first step -> what fetches remote shards ahead, or None; begun behind the workers, which may be forks.
    """

    def __init__(
        self,
        steps: Callable[[], Dataset[StepBatch]],
        *,
        start: Callable[[], int],
        length: int,
        num_workers: int,
        prefetch: Callable[[int], ShardPrefetch | None] = lambda start: None,
    ) -> None:
        self._steps, self._start, self._length = steps, start, length
        self._num_workers, self._prefetch = num_workers, prefetch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[StepBatch]:
        start = self._start()
        loader = DataLoader(
            self._steps(),
            batch_size=None,
            sampler=range(start, self._length),
            num_workers=self._num_workers,
            timeout=_WORKER_TIMEOUT if self._num_workers else 0,
            worker_init_fn=ignore_preemption,
            # Its own generator: drawing the workers' seed must not advance the run's random numbers.
            generator=torch.Generator(),
        )
        others = set(multiprocessing.active_children())
        steps = iter(loader)
        workers = set(multiprocessing.active_children()) - others
        end_workers = partial(_end_workers, workers)
        atexit.register(end_workers)
        ahead = self._prefetch(start)
        try:
            for step in steps:
                if ahead is not None:
                    ahead.advance(step.step)
                yield step
        except BaseException as error:
            # What a worker raised would hold on to the loader, which ends its workers when it goes: killed before
            # that, they would be reported instead of the error.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            if ahead is not None:
                ahead.stop()
            del steps
            end_workers()
            atexit.unregister(end_workers)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. Lightning takes a loader without this for not resumable."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing (see `state_dict`)."""


def _end_workers(workers: Iterable[BaseProcess]) -> None:
    """End workers that hang in a codec: they ignore the signal that PyTorch would send."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
