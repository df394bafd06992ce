"""Tars and tables with any of their bytes changed, and tars of strangers with any members: rows, or a user's error."""

from __future__ import annotations

import json
import tarfile
import tempfile
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from stand_ins.any_damage import Change, changed, changes
from stand_ins.sample_groups import make_group

from mmrlhf.errors import UserError
from mmrlhf.shards.index import Index
from mmrlhf.shards.scan import scan_shard
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards


@cache
def packed() -> dict[str, bytes]:
    """The files of a sound set of three groups."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards([make_group(key) for key in "abc"], Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def table() -> dict[str, bytes]:
    """The files of a sound side-car."""
    with tempfile.TemporaryDirectory() as folder:
        with SideCarWriter(folder, columns=("reward",), fingerprint={"made_by": "test"}) as writer:
            for number in range(3):
                writer.add(f"k{number}", "h", {"reward": float(number)})
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def written(files: dict[str, bytes], folder: str, place: int, steps: list[Change]) -> None:
    """Write files, one of them damaged."""
    name = sorted(files)[place % len(files)]
    for other, data in files.items():
        (Path(folder) / other).write_bytes(changed(data, steps) if other == name else data)


@given(steps=changes, place=st.integers(0, 5))
def test_a_packed_set(steps: list[Change], place: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written(packed(), folder, place, steps)
        try:
            index = Index.load(folder)
            groups = [index.read(row) for row in range(len(index))]
        except UserError:
            return
        assert [replace(group, shard="") for group in groups] == [make_group(key) for key in "abc"]


@given(steps=changes)
def test_a_foreign_tar(steps: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(changed(packed()["shard-00000.tar"], steps))
        try:
            rows = scan_shard(path).rows.to_pylist()
        except UserError as error:
            assert "a.tar" in str(error)
            return
        assert all(row["num_responses"] >= 1 and row["member_sizes"] for row in rows)


names = st.tuples(st.sampled_from("abc"), st.sampled_from(["json", "jpg", "0.png", "mp4", "txt", "x.y", ""])).map(
    ".".join
)
record = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=4) | st.none(),
        "responses": st.lists(
            st.fixed_dictionaries({"text": st.text(max_size=3), "rank": st.integers(-1, 3)}), max_size=3
        ),
        "pairs": st.lists(st.lists(st.integers(-1, 3), max_size=3), max_size=2) | st.text(max_size=2),
        "schema": st.integers() | st.text(max_size=3),
        "media": st.lists(st.dictionaries(st.sampled_from(["kind", "names"]), st.text(max_size=4)), max_size=2),
    },
).map(lambda row: json.dumps(row).encode())
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])


@given(
    members=st.lists(
        st.tuples(names | st.text(min_size=1, max_size=6), record | st.binary(max_size=9), kinds), max_size=5
    )
)
def test_any_members(members: list[tuple[str, bytes, Any]]) -> None:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, data, kind in members:
            info = tarfile.TarInfo(name.replace("\0", "").encode(errors="replace").decode() or "n")
            info.type, info.linkname, info.size = kind, "a.json", len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, BytesIO(data) if info.size else None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(out.getvalue())
        try:
            scan_shard(path)
        except UserError as error:
            assert "a.tar" in str(error)


@given(steps=changes, place=st.integers(0, 5))
def test_a_side_car(steps: list[Change], place: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written(table(), folder, place, steps)
        try:
            found = SideCar.load(folder)
            for number in range(3):
                found.lookup(f"k{number}", ["h"])
        except UserError:
            return
