"""Stage functions that only write a few bytes, for tests of the store, the runner and the app."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.processes import TrainingInterrupted


class Positive:
    """Stands for an object that a stage's settings describe and whose constructor validates."""

    def __init__(self, value: float) -> None:
        if value <= 0:
            raise ConfigError("not positive", where="fake.value", given=value)
        self.value = value


def source(out: Path, *, size: int = 1, root: Path | None = None, runtime: Any) -> Mapping[str, Any]:
    """Write `size` letters; counts how often it ran in a file beside the artefact."""
    count(out)
    (out / "data.txt").write_text("x" * size)
    return {"size": size}


def train(
    out: Path, *, data: Path, policy: str | Path = "hub/model", rate: float = 0.1, runtime: Any
) -> dict[str, Any]:
    """Read its input and say in which processes it ran."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    (out / f"rank{rank}").write_text(str(runtime.trainer.keywords["devices"]))
    (out / f"parent{rank}").write_text(str(os.getppid()))
    (out / f"gpus{rank}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if rank == 0:
        count(out)
        (out / "model").mkdir(exist_ok=True)
    assert isinstance(data, Path)
    return {"letters": len((data / "data.txt").read_text()), "rate": rate, "world": size}


def two_inputs(out: Path, *, tables: list[str], thing: Positive | None = None, runtime: Any) -> dict[str, Any]:
    """Take its inputs as a list."""
    return {"tables": len(tables), "value": thing.value if thing else 0.0}


class Thing:
    """An object among a stage's settings that finds out late what it cannot work with."""

    def __init__(self, depth: float, wide: float = 1.0) -> None:
        self.depth, self.wide = depth, wide


def refusing(out: Path, *, name: str, depth: float = 0.0, things: dict[str, Thing], runtime: Any) -> dict[str, Any]:
    """Refuse an argument while it runs."""
    raise ConfigError("does not fit the data", argument=name, given=3)


def failing(out: Path, *, kind: str = "user", runtime: Any) -> dict[str, Any]:
    """Leave something behind and fail, or succeed where something is left."""
    rank = int(os.environ.get("RANK", 0))
    left = out / f"half-{rank}"
    if left.exists():
        return {"continued": True}
    left.touch()
    if kind == "preempted":
        raise TrainingInterrupted("stopped after step 3", None if rank else signal.SIGUSR1)
    if kind == "ctrl-c":
        raise KeyboardInterrupt
    if kind == "user":
        raise DataError("a shard is damaged", where="shard-7", fix="delete it")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a bug")


def count(out: Path) -> None:
    """Note one execution in a file that survives the rename of `out`."""
    log = out.parent.parent / f"{out.parent.name}.count"
    with log.open("a") as file:  # jobs of a sweep may write at once
        file.write("x")


def fill(out: Path, *, runtime: Any) -> dict[str, Any]:
    """Write to a disk that is full: /dev/full takes no byte."""
    Path("/dev/full").write_text("x")
    return {}
