"""Each job at once on this machine its own GPUs: parallel jobs of a sweep share what is visible between them.

A process keeps its share until it ends, because CUDA reads CUDA_VISIBLE_DEVICES once. A share is held by a lock on a
file in the sweep's folder, which a killed process gives back.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmrlhf.errors import ConfigError
from mmrlhf.processes import count_devices

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOCKS = "devices"
_PATIENCE = 120.0  # seconds for a worker that has ended to give its share back
_held: list[FileLock] = []  # of this process


def visible_gpus(accelerator: str, env: Mapping[str, str] | None = None) -> list[str]:
    """Name the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES does; none where the accelerator is the CPU."""
    env = os.environ if env is None else env
    if accelerator not in ("gpu", "cuda", "auto"):
        return []
    if VISIBLE in env:
        return [name.strip() for name in env[VISIBLE].split(",") if name.strip()]
    import torch  # takes a second; most sweeps say it in the environment or run on the CPU

    return [str(number) for number in range(torch.cuda.device_count())]


def cut_shares(trainer: Mapping[str, Any], num_jobs: int, visible: Sequence[str]) -> list[list[str]]:
    """Cut the visible GPUs into equal shares, one for each of the jobs at once; none where there is nothing to share.

    Args:
        trainer: `devices` and `accelerator` of a job.
        num_jobs: jobs at once; -1 is one for each core that joblib counts, which a container may have fewer of.

    Raises:
        ConfigError: a job would need more than its share.
    """
    if num_jobs < 0:
        from joblib import cpu_count  # there where its launcher is

        num_jobs = max(1, cpu_count() + 1 + num_jobs)
    if num_jobs == 1 or not visible:
        return []
    size, needed = len(visible) // num_jobs, _needed(trainer)
    if needed > size:
        fits = len(visible) // needed
        raise ConfigError(
            "there are fewer GPUs than the jobs at once would take",
            where="hydra.launcher.n_jobs x trainer.devices",
            given=f"{num_jobs} x {trainer.get('devices')}, with {len(visible)} GPUs visible",
            expected=f"at most {len(visible)} in all",
            fix=f"hydra.launcher.n_jobs={fits}" if fits else f"trainer.devices={len(visible)} hydra.launcher.n_jobs=1",
        )
    return [list(visible[start : start + size]) for start in range(0, num_jobs * size, size)]


def _needed(trainer: Mapping[str, Any]) -> int:
    """How many GPUs a job has to see: 1 where it takes all that it sees, those up to the last that it names."""
    devices = trainer.get("devices", 1)
    if devices in ("auto", -1, "-1"):
        return 1
    named = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if isinstance(named, Sequence) and not isinstance(named, str):
        return 1 + max(int(number) for number in named)
    return count_devices(devices, str(trainer.get("accelerator", "auto")))


def job_shares(launcher: Mapping[str, Any], trainer: Mapping[str, Any]) -> list[list[str]]:
    """Cut this machine's GPUs into shares, where a sweep's launcher runs several jobs on it at once.

    Args:
        launcher: settings of Hydra's launcher.

    Raises: ConfigError where there are too few.
    """
    if "joblib" not in str(launcher.get("_target_")):
        return []
    return cut_shares(trainer, int(launcher.get("n_jobs", -1)), visible_gpus(str(trainer.get("accelerator", "auto"))))


def has_share() -> bool:
    """Whether this process has taken a share, for an earlier job."""
    return bool(_held)


def take_share(folder: Path, shares: Sequence[Sequence[str]]) -> None:
    """Show this process, and those it starts, one share of the GPUs that no other process has.

    Args:
        folder: the sweep's, the same for all of its jobs.

    Raises: ConfigError where none becomes free.
    """
    if not shares:
        return
    (folder / _LOCKS).mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        for number, share in enumerate(shares):
            lock = FileLock(folder / _LOCKS / f"{number}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            os.environ[VISIBLE] = ",".join(share)
            log.info("this job's GPUs: %s", os.environ[VISIBLE])
            return
        time.sleep(0.2)
    raise ConfigError(
        "no GPUs became free for this job", where=folder / _LOCKS, given=f"{len(shares)} shares, all held"
    )
