"""The manifest and the index table must be whole, of this schema, and of one piece of data."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.sample_groups import make_group

from mmrlhf.errors import DataError
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import INDEX_FILE, MANIFEST_FILE, check_shards, read_index
from mmrlhf.shards.writer import write_shards


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Two groups in one shard."""
    write_shards([make_group("a"), make_group("b")], tmp_path)
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_a_manifest_says(packed: Path) -> None:
    manifest = json.loads((packed / MANIFEST_FILE).read_text())
    assert manifest["schema_version"] == 1 and manifest["num_groups"] == 2 and manifest["creator"].startswith("mmrlhf")
    [shard] = manifest["shards"]
    assert shard["bytes"] == (packed / shard["name"]).stat().st_size and shard["count"] == 2


def test_another_schema_is_refused(packed: Path) -> None:
    change(packed, schema_version=0)
    with pytest.raises(DataError, match="schema version"):
        Index.load(packed)


def test_a_manifest_of_other_data_is_refused(packed: Path) -> None:
    change(packed, digest="0" * 32)
    with pytest.raises(DataError, match="different data"):
        Index.load(packed)


def test_an_index_of_other_data_is_refused(packed: Path, tmp_path: Path) -> None:
    write_shards([make_group("c")], tmp_path / "other")
    (tmp_path / "other" / INDEX_FILE).replace(packed / INDEX_FILE)
    with pytest.raises(DataError, match="different data"):
        Index.load(packed)


@pytest.mark.parametrize("name", [INDEX_FILE, MANIFEST_FILE])
def test_a_cut_file_is_refused(packed: Path, name: str) -> None:
    (packed / name).write_bytes((packed / name).read_bytes()[:40])
    with pytest.raises(DataError, match=name):
        Index.load(packed)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """Sixty groups in three shards, and what their index says."""
    folder = tmp_path_factory.mktemp("sound")
    write_shards([make_group(f"key-{n}", num_images=n % 3) for n in range(60)], folder, max_groups_per_shard=20)
    return folder, read_index(folder)[2]


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_index_is_found(sound: tuple[Path, pa.Table], place: float, bit: int) -> None:
    """Wherever it is, in a page, in the head of one or in the footer."""
    folder, _ = sound
    with flipped(folder / INDEX_FILE, place, bit), pytest.raises(DataError, match=INDEX_FILE):
        read_index(folder)


@settings(max_examples=100)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_manifest_changes_nothing_in_silence(
    sound: tuple[Path, pa.Table], place: float, bit: int
) -> None:
    folder, table = sound
    before = read_index(folder)[:2]
    with flipped(folder / MANIFEST_FILE, place, bit):
        try:
            shards, digest, found = read_index(folder)
            check_shards(folder, shards, found)
        except DataError:
            return
    assert (shards, digest) == before and found.equals(table), "the name of its creator, or a blank"


@contextmanager
def flipped(path: Path, place: float, bit: int) -> Iterator[None]:
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[int(place * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(sound)


def test_page_checksums_alone_find_every_flipped_byte_of_a_page(sound: tuple[Path, pa.Table], tmp_path: Path) -> None:
    """Sets of early versions have no checksum of the whole index, but one of each page."""
    for path in sound[0].iterdir():
        shutil.copy(path, tmp_path)
    manifest = json.loads((tmp_path / MANIFEST_FILE).read_text())
    del manifest["index_sha256"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest))
    metadata = pq.read_metadata(tmp_path / INDEX_FILE)
    chunks = [metadata.row_group(0).column(number) for number in range(metadata.num_columns)]
    for chunk in chunks:
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        last = start + chunk.total_compressed_size - 1  # the end of a chunk is the end of its last page
        with flipped(tmp_path / INDEX_FILE, (last + 0.5) / (tmp_path / INDEX_FILE).stat().st_size, 3):
            with pytest.raises(DataError, match="index cannot be read"):
                read_index(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../shard-00000.tar"}, {"name": "/etc/passwd"}, {"name": ".hidden.tar"}, {"name": "a/../../b.tar"},
        {"sha256": "../../x"}, {"sha256": "A" * 64}, {"bytes": -1}, {"count": True}, {"bytes": "9"}, {"name": 3},
        {"url": "x"}, {"name": "half \ud800.tar"}, {"bytes": 10**30}, {"count": 2**63},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_a_stranger_names_no_other_file(change: dict, packed: Path) -> None:
    manifest = json.loads((packed / MANIFEST_FILE).read_text())
    manifest["shards"][0].update(change)
    (packed / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="manifest is damaged"):
        read_index(packed)


def test_a_shard_that_a_manifest_lists_twice(packed: Path) -> None:
    manifest = json.loads((packed / MANIFEST_FILE).read_text())
    change(packed, shards=manifest["shards"] * 2)
    with pytest.raises(DataError, match="listed twice") as caught:
        read_index(packed)
    assert caught.value.fix == "pack the data again"
    (packed / ARTIFACT_FILE).touch()
    with pytest.raises(DataError, match="listed twice") as caught:
        read_index(packed)
    assert f"delete {packed}, " in str(caught.value.fix)


def test_an_index_whose_text_is_no_text(packed: Path) -> None:
    """Parquet says that a column holds UTF-8, and nothing checks it but a look at every value."""
    table = pq.read_table(packed / INDEX_FILE)
    raw = pa.array([b"\xff\xfe", b"b"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(0, table.schema.field("key"), raw), packed / INDEX_FILE)
    change(packed, index_sha256=hashlib.sha256((packed / INDEX_FILE).read_bytes()).hexdigest())
    with pytest.raises(DataError, match="index cannot be read"):
        read_index(packed)
