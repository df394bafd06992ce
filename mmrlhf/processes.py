"""The process group that this process is in, the signals that ask it to stop, and what its ranks know together."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from mmrlhf.errors import ConfigError

# SIGTERM: a cluster's last warning; SIGINT: Ctrl-C; SIGUSR1 and SIGUSR2: SLURM's `--signal`
PREEMPTION = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class TrainingInterrupted(Exception):
    """Training stopped on a signal after saving; starting it again continues from that checkpoint.

    Args:
        message: which signal, behind which step, and where it is saved.
        signal: the signal that this process received; None where it reached another rank only.
    """

    def __init__(self, message: str, signal: signal.Signals | None) -> None:
        super().__init__(message)
        self.signal = signal


def ignore_preemption(worker: int = 0) -> None:
    """Ignore the signals in a worker process: a cluster sends them to all, and the step still needs its workers."""
    for number in PREEMPTION:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def work_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once this process has computed for so many seconds in it.

    It is processor time, so a machine that does much else is no reason. Only the main thread is told, because no other
    takes signals; elsewhere the block has no limit. A single call into C code is waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    late = TimeoutError(f"took more than {seconds:g} s of work")
    rung = False

    def ring(number: int, frame: object) -> None:
        nonlocal rung
        rung = True
        raise late

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except Exception as error:
        if rung and error is not late:  # what was interrupted made another error of it, as jinja does
            raise TimeoutError(str(late)) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


T = TypeVar("T")


def gather_ranks(value: T) -> list[T]:
    """Every rank's value, in the order of ranks; every rank has to call this."""
    import torch.distributed  # takes a second; the command itself never asks

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


_GROUP_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_RUN_ID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
)


_SLURM = "slurm-"


@dataclass(frozen=True)
class Group:
    """The process group that this process was started in: its rank, the number of ranks, a name of this launch."""

    rank: int = 0
    size: int = 1
    launch: str = "single"

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> Group:
        """Read what torchrun or srun left in the environment; a single process otherwise."""
        env = os.environ if env is None else env
        if int(env.get("WORLD_SIZE", 1)) > 1 and "RANK" in env:
            launch = f"{env.get('TORCHELASTIC_RUN_ID', 'group')}-{env.get('MASTER_PORT', '0')}"
            return cls(int(env["RANK"]), int(env["WORLD_SIZE"]), launch)
        # set inside an srun step only, not in the batch script around it
        if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in env:
            names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
            launch = _SLURM + ".".join(env.get(name, "0") for name in names)
            return cls(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), launch)
        return cls()

    @property
    def outlives_failures(self) -> bool:
        """Whether processes go on when one has failed: torchrun ends the others, srun waits for each of them."""
        return self.launch.startswith(_SLURM)

    @property
    def sign(self) -> str:
        """A name of this launch that a file may have."""
        return re.sub(r"[^A-Za-z0-9.-]", "_", self.launch)


@contextmanager
def outside_group() -> Iterator[None]:
    """Hide the process group from a stage that one process runs alone, so that Lightning does not join it."""
    hidden = {name: os.environ.pop(name) for name in _GROUP_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def leave_group() -> None:
    """Take this process out of torch's process group, where training has put it in one.

    Lightning does so for NCCL only, and a process that ends inside a gloo group may be aborted on its way out.
    """
    distributed = sys.modules.get("torch.distributed")  # takes a second to import; where it was used it is there
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def count_devices(devices: Any, accelerator: str) -> int:
    """Count the processes that Lightning's `devices` asks for on one machine (4, -1, "auto", [0, 2], "0,2")."""
    if isinstance(devices, list | tuple):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([item for item in devices.split(",") if item.strip()])
    if devices in ("auto", -1, "-1"):
        return _visible_gpus() if accelerator in ("gpu", "cuda", "auto") else 1
    try:
        count = int(devices)
    except (TypeError, ValueError) as error:
        raise _bad_devices(devices) from error
    if count < 1:
        raise _bad_devices(devices)
    return count


def check_shard_size(shard_size: int | None, size: int) -> None:
    """Raise ConfigError where a number of ranks cannot be parted into groups of `shard_size` that share a model."""
    if shard_size is not None and (shard_size < 1 or size % shard_size):
        raise ConfigError(
            "all devices together do not make whole groups that share a model",
            where="trainer.shard_size",
            given=f"shard_size={shard_size}, {size} devices",
            expected=f"one of {', '.join(str(each) for each in range(1, size + 1) if size % each == 0)}, or null",
        )


def _bad_devices(devices: Any) -> ConfigError:
    return ConfigError(
        "not a number of devices", where="trainer.devices", given=devices, expected='a number, "auto" or [0, 1, ...]'
    )


def _visible_gpus() -> int:
    import torch  # takes a second; most configs give a number

    return max(1, torch.cuda.device_count())
