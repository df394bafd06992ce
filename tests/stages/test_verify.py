"""The stage `verify`: a sound set passes, damage is listed and named, and every process of a group ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
from stand_ins.sample_groups import make_group

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import verify
from mmrlhf.types import Media

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four groups in two shards; the last one's picture was never one."""
    junk = make_group("d", media=(Media("image", ("0.jpg",), (b"junk",)),))
    write_shards([*map(make_group, "abc"), junk], tmp_path / "shards", max_groups_per_shard=2)
    return tmp_path / "shards"


def runtime(num_workers: int = 0) -> Runtime:
    return Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False, num_workers=num_workers)


def listed(out: Path) -> list[str]:
    return [item["where"] for item in json.loads((out / verify.REPORT_FILE).read_text())["problems"]]


def test_a_sound_set_passes(shards: Path, tmp_path: Path) -> None:
    summary = verify.run(tmp_path, shards=shards, runtime=runtime())
    assert (summary["shards"], summary["groups"], summary["problems"]) == (2, 4, 0) and listed(tmp_path) == []
    with pytest.raises(DataError, match="cannot be decoded"):
        verify.run(tmp_path, shards=shards, media=True, runtime=runtime())
    assert listed(tmp_path) == ["shard-00001.tar:d:0.jpg"]


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_damage_is_named_and_all_of_it_is_listed(shards: Path, tmp_path: Path, num_workers: int) -> None:
    for shard in shards.glob("*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"question", b"QUESTION"))
    with pytest.raises(DataError, match="shard-00000.tar:a:json"):
        verify.run(tmp_path, shards=shards, runtime=runtime(num_workers))
    assert {f"shard-0000{n}.tar:{key}:json" for n, key in zip((0, 0, 1, 1), "abcd", strict=True)} <= set(
        listed(tmp_path)
    )


def test_remote_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as they are fetched"):
        verify.run(tmp_path, shards="https://example.org/set", runtime=runtime())  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_under_torchrun_every_process_ends(shards: Path, tmp_path: Path, damaged: bool) -> None:
    if damaged:
        shard = shards / "shard-00000.tar"
        shard.write_bytes(shard.read_bytes().replace(b"question", b"QUESTION"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "run.py"]
    settings = ["stage=verify", f"inputs.shards={shards}", "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, *settings, "trainer=cpu", "logger=none"],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert (done.returncode != 0) == damaged, done.stderr[-3000:]
    assert not damaged or "shard-00000.tar:a:json" in done.stdout + done.stderr
