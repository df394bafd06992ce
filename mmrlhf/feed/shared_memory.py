"""Whether a machine's shared memory holds what worker processes prepare ahead: found out before they are started.

PyTorch's workers hand their tensors over in shared memory. A container has 64 MB of it unless it is told otherwise, and
a worker that finds none stands still or is killed, which says nothing of the reason.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mmrlhf.errors import ConfigError
from mmrlhf.feed.dataset import num_bytes
from mmrlhf.tensors import EncodedGroup

SHARED_MEMORY = Path("/dev/shm")
# items that each worker prepares ahead of use: PyTorch's default, which every loader here keeps
PREFETCH_FACTOR = 2
_MIB = 2**20


def require_shared_memory(group: EncodedGroup, *, groups_per_item: int, num_workers: int) -> None:
    """Refuse worker processes whose items would not fit into shared memory; without workers, or without it, do nothing.

    Args:
        group: an encoded query, whose size stands for all.
        groups_per_item: queries in what a worker of this process hands over at a time.
        num_workers: worker processes of this process; every process of a group on this machine has as many.

    Raises:
        ConfigError: with what is free, what is needed, and how to get it.
    """
    if num_workers == 0 or not SHARED_MEMORY.is_dir():
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    of_worker = PREFETCH_FACTOR * groups_per_item * num_bytes(group) * ranks
    needed, free = num_workers * of_worker, shutil.disk_usage(SHARED_MEMORY).free
    if needed <= free:
        return
    raise ConfigError(
        "shared memory does not hold what worker processes prepare ahead",
        where=f"runtime.num_workers, {SHARED_MEMORY}",
        given=f"{free / _MIB:,.1f} MiB free; {num_workers} workers{f' of {ranks} processes' if ranks > 1 else ''} x "
        f"{PREFETCH_FACTOR * groups_per_item} queries x {num_bytes(group) / _MIB:,.1f} MiB",
        expected=f"{needed / _MIB:,.1f} MiB free",
        fix=f"runtime.num_workers={free // of_worker}; or give the container more shared memory (docker and podman: "
        f"--shm-size={needed * 2 // 2**30 + 1}g or --ipc=host; Kubernetes: an emptyDir with medium: Memory at "
        f"{SHARED_MEMORY})",
    )
