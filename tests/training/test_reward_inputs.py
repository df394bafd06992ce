"""What a reward model needs of its data is looked for before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.training.reward_inputs import check_dimensions
from mmrlhf.training.settings import Schedule
from mmrlhf.types import PreferenceGroup, Response


def test_a_damaged_record_does_not_end_a_run_before_it_starts(tmp_path: Path) -> None:
    """Training leaves it out and counts it; the dimensions are those of the others."""
    scored = (Response("a", rank=1, scores={"helpful": 4.0}), Response("b", rank=2, scores={"helpful": 2.0}))
    write_shards([PreferenceGroup(f"q{number}", "what ?", scored) for number in range(2)], tmp_path)
    index = Index.load(tmp_path)
    offset, size, _ = index.entries[0].members["json"]
    with (tmp_path / index.entries[0].shard).open("r+b") as shard:
        shard.seek(offset + size // 2)
        shard.write(b"\0")
    check_dimensions(index, Schedule(holdout=0.0), ["helpful"])
    with pytest.raises(DataError, match="no response has a score for harmless"):
        check_dimensions(index, Schedule(holdout=0.0), ["harmless"])
