"""A packed set damaged afterwards: an error that names the place, or the very same groups; nothing in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins.damage_counts import FILES, TRIES, damage_packed, write_packed
from stand_ins.damaged_files import KINDS


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packed(tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_goes_unnoticed(packed: Path, tmp_path: Path, kind: str, name: str) -> None:
    seen = damage_packed(packed, tmp_path, kind, name)
    assert sum(seen.values()) == TRIES
    if kind in ("cut", "shifted"):
        assert seen["start"] >= 11, "a file of another length is noticed before training starts"
