"""Kill -9 at 20 random moments, in packing, in a step, in a save, in scoring: nothing lost, nothing twice, to the bit.

The processes are forked from a server that has the libraries loaded, so a restart costs a fraction of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from stand_ins import killed_work
from stand_ins.sample_groups import picture, write_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def processes() -> Any:
    """Make processes of a fork server that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["stand_ins.killed_work", "mmrlhf.models.load", "transformers.models.llava_onevision"]
    )
    return context


class Job:
    """A stage that is started again and again in one folder until it is done.

    Args:
        work: function of killed_work; inputs: its arguments after the folder.
        result: folder -> what must not depend on kills.
    """

    def __init__(
        self, processes: Any, root: Path, work: Callable[..., None], inputs: tuple[Path | int, ...], result: Callable
    ) -> None:
        self._processes, self._root, self._work, self._inputs, self._result = processes, root, work, inputs, result
        self._runs = 0
        started = time.monotonic()
        assert self._start(self.fresh(), lambda _: False) == 0
        self.seconds = time.monotonic() - started
        self.expected = result(self.folder)

    @property
    def folder(self) -> Path:
        return self._root / str(self._runs)

    def fresh(self) -> Path:
        self._runs += 1
        self.folder.mkdir(parents=True)
        return self.folder

    def _start(self, folder: Path, is_time: Callable[[float], bool]) -> int | None:
        """Run until it ends, or kill it when `is_time(seconds)`; returns the exit code, None after a kill."""
        process = self._processes.Process(target=self._work, args=(folder, *self._inputs))
        process.start()
        started = time.monotonic()
        while process.is_alive():
            if is_time(time.monotonic() - started):
                process.kill()
                process.join()
                return None if process.exitcode == -9 else process.exitcode
            process.join(0.001)
        return process.exitcode

    def kill(self, number: int, is_time: Callable[[], Callable[[float], bool]]) -> None:
        """Kill `number` times, going on after each; whenever a run gets to its end, compare and begin anew."""
        self.fresh()
        while number:
            code = self._start(self.folder, is_time())
            assert code in (0, None)
            number -= code is None
            if code == 0:
                self.compare()
                self.fresh()
        assert self._start(self.folder, lambda _: False) == 0
        self.compare()

    def compare(self) -> None:
        found = self._result(self.folder)
        assert found.keys() == self.expected.keys()
        for name, value in self.expected.items():
            same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
            assert same, name


def at_random(random_numbers: random.Random, seconds: float) -> Callable[[], Callable[[float], bool]]:
    def draw() -> Callable[[float], bool]:
        moment = random_numbers.uniform(0, seconds)
        return lambda passed: passed >= moment

    return draw


def trained(folder: Path) -> dict[str, Any]:
    """Every parameter, and what became of every place of every epoch."""
    data = json.loads((folder / "metrics.json").read_text())["data"]
    return {**load_file(folder / "model" / "model.safetensors"), "data": data}


def test_training_that_is_killed_ends_bit_identical(
    processes: Any, tmp_path: Path, small_shards: Path, small_policy: Path
) -> None:
    """Eight kills: four at any moment, four while a checkpoint is half-written."""
    job = Job(processes, tmp_path / "train", killed_work.run_training, (small_shards, small_policy), trained)
    data = job.expected["data"]
    assert [row["epoch"] for row in data["epochs"]] == list(range(killed_work.EPOCHS))
    for row in data["epochs"]:
        assert row["delivered"] + row["quarantined"] == data["groups_per_epoch"] > 0 and row["quarantined"] == 0
        places = data["steps_per_epoch"] * killed_work.GROUPS_PER_STEP
        assert row["delivered"] + row["padded"] + row["quarantined"] == places
    numbers = random.Random(0)
    job.kill(4, at_random(numbers, job.seconds))

    def in_a_save() -> Callable[[float], bool]:
        saves = numbers.randrange(3)  # the first, second or third from here on
        seen: set[str] = set()

        def is_time(_: float) -> bool:
            seen.update(path.name for path in job.folder.glob("checkpoints/*.tmp"))
            return len(seen) > saves

        return is_time

    job.kill(4, in_a_save)


@pytest.mark.parametrize(("num_workers", "kills"), [(0, 6), (2, 3)])
def test_packing_that_is_killed_writes_the_same_bytes(
    num_workers: int, kills: int, processes: Any, tmp_path: Path
) -> None:
    """Kills at random moments, of a process alone and of one whose workers decode."""
    answers = [{"text": text, "rank": rank} for text, rank in (("a", 1), ("b", 2), ("c", 2))]
    rows = [{"id": f"q{n}", "image": f"long/{n}.jpg", "prompt": "p", "responses": answers} for n in range(60)]
    raw = write_records(tmp_path / "raw", "data.jsonl", rows)
    (raw / "long").mkdir()
    for number in range(60):
        (raw / f"long/{number}.jpg").write_bytes(picture(300, 200, shade=number))

    def packed(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    job = Job(processes, tmp_path / "pack", killed_work.run_pack, (raw, num_workers), packed)
    assert len(job.expected) == 23, "twenty shards, index, manifest, report"
    job.kill(kills, at_random(random.Random(1), job.seconds))


def test_scoring_that_is_killed_gives_the_same_table(
    processes: Any, tmp_path: Path, small_shards: Path, scalar_model: Path
) -> None:
    """Six kills at random moments."""

    def scored(folder: Path) -> dict[str, Any]:
        parts = [pq.read_table(path).to_pylist() for path in folder.glob("rewards/part-*.parquet")]
        keys = [row["key"] + row["response_hash"] for part in parts for row in part]
        assert len(keys) == len(set(keys)), "nothing is scored twice"
        return {row["key"] + row["response_hash"]: row for part in parts for row in part}

    job = Job(processes, tmp_path / "score", killed_work.run_scoring, (small_shards, scalar_model), scored)
    job.kill(6, at_random(random.Random(2), job.seconds))
