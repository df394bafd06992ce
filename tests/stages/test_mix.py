"""The stage `mix`: several packed sets read like one, without a copy."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
import pytest
from stand_ins.sample_groups import make_group

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import mix

RUNTIME = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)


def test_sets_are_read_as_one(tmp_path: Path) -> None:
    """Both sets have a query `a`; each keeps its own."""
    write_shards([make_group(key) for key in "abc"], tmp_path / "one")
    write_shards([make_group("a", num_responses=2)], tmp_path / "two")
    sets = {"main": str(tmp_path / "one"), "extra": str(tmp_path / "two")}
    summary = mix.run(tmp_path / "out", sets=sets, runtime=RUNTIME)
    assert summary["groups"] == 4 and summary["sets"] == {"main": 3, "extra": 1}
    index = Index.load(tmp_path / "out")
    assert index.digest == summary["digest"]
    groups = {group.key: group for group in map(index.read, range(4))}
    assert groups.keys() == {"main/a", "main/b", "main/c", "extra/a"}
    assert len(groups["main/a"].responses) == 3 and len(groups["extra/a"].responses) == 2
    with pytest.raises(DataError):
        mix.run(tmp_path / "other", sets={"main": str(tmp_path / "nowhere")}, runtime=RUNTIME)
