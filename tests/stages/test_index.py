"""The stage `index`: tars of another program become a packed set by links, with or without worker processes."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import lightning as L
import pytest
from stand_ins.sample_groups import make_group

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import index


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars without index or manifest."""
    write_shards([make_group(key) for key in "abcde"], tmp_path / "packed", max_groups_per_shard=2)
    (tmp_path / "tars").mkdir()
    for path in (tmp_path / "packed").glob("*.tar"):
        shutil.move(path, tmp_path / "tars")
    return tmp_path / "tars"


def runtime(num_workers: int = 0) -> Runtime:
    return Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_sample_is_found_and_nothing_is_copied(tars: Path, tmp_path: Path, num_workers: int) -> None:
    summary = index.run(tmp_path / "out", tars=tars, runtime=runtime(num_workers))
    assert (summary["shards"], summary["groups"], summary["pairs"], summary["images"]) == (3, 5, 15, 5)
    assert summary["videos"] == 0 and summary["bytes"] == sum(path.stat().st_size for path in tars.iterdir())
    found = Index.load(tmp_path / "out")
    assert [found.read(row).key for row in range(5)] == list("abcde")
    assert all(path.is_symlink() for path in (tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_cut_tar_is_named(tars: Path, tmp_path: Path, num_workers: int) -> None:
    path = tars / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"shard-00001\.tar"):
        index.run(tmp_path / "out", tars=tars, runtime=runtime(num_workers))
