"""The benchmark of memory: what it draws is a pool, and the stage finds in it what was planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import curation_memory


@pytest.mark.slow
def test_the_drawn_pool_is_one(tmp_path: Path) -> None:
    rows = 5_000
    curation_memory.write_pool(tmp_path, rows, 16)
    found = curation_memory.measured(str(tmp_path), 1, 300, True)
    planted = rows // curation_memory.COPY
    assert found["fell"].keys() == {"duplicate"} and 0.95 * planted <= found["fell"]["duplicate"] <= planted
    assert found["sampled"] == 300
    # which steps are long enough to be seen is the machine's matter
    assert set(found["steps"]) - {"outside"} and found["at"]
    assert found["anonymous_mib"] <= found["resident_mib"]
