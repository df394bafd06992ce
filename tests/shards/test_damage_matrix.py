"""A packed set damaged afterwards: an error that names the place, or the very same groups; nothing in between."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from stand_ins.damaged_files import KINDS, originals
from stand_ins.sample_groups import make_group

from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media, PreferenceGroup

SUFFIX = {"jpeg": "jpg"}


def groups() -> list[PreferenceGroup]:
    """One group per format of media, and one with two pictures."""
    files = {fmt: (SUFFIX.get(fmt, fmt), data) for fmt, data in originals().items()}
    made = []
    for fmt, (suffix, data) in files.items():
        video = fmt in ("mp4", "mkv")
        item = Media("video", (suffix,), (data,)) if video else Media("image", (f"0.{suffix}",), (data,))
        made.append(make_group(fmt, media=(item,)))
    return [*made, make_group("two", num_images=2)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All groups in two shards."""
    folder = tmp_path_factory.mktemp("packed")
    write_shards(groups(), folder, max_groups_per_shard=4)
    return folder


def outcome(folder: Path, sound: Index, expected: list[PreferenceGroup]) -> str:
    """Load a set and read it in full; "start", "read" or "same" says where damage was noticed."""
    try:
        index = Index.load(folder)
        assert list(index.entries) == list(sound.entries)
    except DataError as error:
        assert any(name in str(error) for name in ("shard-0000", "index.parquet", "manifest", str(folder)))
        return "start"
    noticed = "same"
    for row, group in enumerate(expected):
        try:
            assert index.read(row) == group
        except DataError as error:
            assert "shard-0000" in str(error) and group.key in str(error)
            noticed = "read"
    return noticed


@pytest.mark.parametrize("name", ["shard-00000.tar", "manifest.json", "index.parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_goes_unnoticed(packed: Path, tmp_path: Path, kind: str, name: str) -> None:
    index = Index.load(packed)
    expected = [index.read(row) for row in range(len(index))]
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sound, seen = (packed / name).read_bytes(), Counter[str]()
    for seed in range(12):
        damaged = KINDS[kind](bytearray(sound), random.Random(f"{name} {kind} {seed}"))
        (tmp_path / name).write_bytes(damaged)
        seen[outcome(tmp_path, index, expected)] += 1
    assert sum(seen.values()) == 12
    if kind in ("cut", "shifted"):
        assert seen["start"] >= 11, "a file of another length is noticed before training starts"
