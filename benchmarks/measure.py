"""Time and memory: ways of doing the same in turn, so that noise meets all of them; peaks in a fresh process each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20
# glibc: blocks from this size on are mapped by themselves, and the end of the heap is given back
_GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Timing:
    """Rounds of one way: wall seconds, and CPU seconds of this process, which a busy machine disturbs least."""

    wall: list[float]
    cpu: list[float]


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True) -> dict[str, Timing]:
    """Time each way in turn: one round runs every way once, after a warm-up of each."""
    if warm_up:
        for way in ways.values():
            way()
    timings = {name: Timing([], []) for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            timings[name].wall.append(seconds_of(way))
            timings[name].cpu.append(time.process_time() - started)
    return timings


def seconds_of(way: Callable[[], object]) -> float:
    """Seconds that a call takes, until the device is done with it."""
    _synchronize()
    started = time.perf_counter()
    way()
    _synchronize()
    return time.perf_counter() - started


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of how many times longer one way took than another in the same round."""
    return round(median(s / f for s, f in zip(slow, fast, strict=True)), 2)


def peak_memory(step: Callable[[], object]) -> dict[str, float]:
    """MiB that the process (or GPU) holds before a step, and the most it holds during one.

    The step runs once before, so that what stays (gradients, optimizer state) is there. Meant for a process that does
    nothing else: see `in_fresh_process`.
    """
    step()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return {"before_mib": before / MIB, "peak_mib": torch.cuda.max_memory_allocated() / MIB}
    before = resident()
    # Sets the kernel's high-water mark of this process back to what it holds now.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    step()
    return {"before_mib": before / MIB, "peak_mib": _status("VmHWM") / MIB}


def resident() -> int:
    """Bytes of memory that this process holds."""
    return _status("VmRSS")


def peak_of_tensors(step: Callable[[], object], held: Iterable[Tensor]) -> float:
    """MiB of tensors when a step has most of them.

    Args:
        held: tensors that are there before it. On a GPU its allocator counts them; on a CPU they are added to what the
            process grows by, so that the interpreter and its libraries are left out.
    """
    found = peak_memory(step)
    if torch.cuda.is_available():
        return found["peak_mib"]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held}
    return found["peak_mib"] - found["before_mib"] + sum(storages.values()) / MIB


def in_fresh_process(module: str, point: Mapping[str, Any]) -> dict[str, Any]:
    """Run `python -m MODULE --point JSON` and return the JSON object that it prints last.

    Its C library gives freed tensors back at once: what it would hold back is as large again, and no need of the step.
    """
    command = [sys.executable, "-m", module, "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_GIVING_BACK})
    if done.returncode != 0:
        raise RuntimeError(f"{module} failed on {point}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def count_products(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of a step; attention is left out."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    found = counter.get_flop_counts()["Global"]
    return sum(count for kind, count in found.items() if "attention" not in str(kind))


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product here and now (the best of five)."""
    size = 8192 if device == "cuda" else 1024
    left, right = (
        torch.randn(size, size, device=device, dtype=dtype),
        torch.randn(size, size, device=device, dtype=dtype),
    )
    seconds_of(lambda: left @ right)
    return 2 * size**3 / min(seconds_of(lambda: left @ right) for _ in range(5))


def report(**fields: Any) -> None:
    """Print one JSON line."""
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in fields.items()}), flush=True)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not say {field}")
