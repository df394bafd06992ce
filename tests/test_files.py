"""Laws of publishing: whole or absent, no leftovers, and no two writers in each other's way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mmrlhf.errors import DataError
from mmrlhf.files import publish_folder, read_regular, write_bytes, write_json, written


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(KeyError), written(tmp_path / "a") as part:
        part.write_bytes(b"half of the ne")
        assert (tmp_path / "a").read_bytes() == b"old"
        raise KeyError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_writers_of_one_name_never_share_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those with one process number, as on two hosts: a reader sees one of the texts, never a mixture."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    texts = [bytes([number]) * 300_000 for number in range(8)]
    barrier = threading.Barrier(len(texts))

    def write(text: bytes) -> None:
        with written(tmp_path / "a") as part:
            barrier.wait(30)
            part.write_bytes(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in texts and len(list(tmp_path.iterdir())) == 1


def test_everything_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of flushes and renames, file and folder: what a power cut leaves is whole."""
    events: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def name(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(f"flush {name(fd)}"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"name {Path(b).name}"), replace(a, b)))
    monkeypatch.setattr(os, "rename", lambda a, b: (rename(a, b), events.append(f"name {Path(b).name}")))
    write_json(tmp_path / "a.json", 1)
    assert [event.split(".")[0] for event in events[:1]] == ["flush "] and events[1:] == [
        "name a.json", f"flush {tmp_path.name}",
    ]  # fmt: skip
    events.clear()
    (tmp_path / "part" / "inner").mkdir(parents=True)
    (tmp_path / "part" / "inner" / "b").write_text("b")
    publish_folder(tmp_path / "part", tmp_path / "whole")
    named = events.index("name whole")
    assert {"flush b", "flush inner", "flush part"} <= set(events[:named])
    assert events[named + 1 :] == [f"flush {tmp_path.name}"]


@pytest.mark.parametrize("many", [False, True])
def test_a_folder_replaces_another_and_takes_no_leftovers_along(tmp_path: Path, many: bool) -> None:
    for folder, text in (("part", "new"), ("final", "old")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data").write_text(text)
    (tmp_path / "final" / "other").touch()
    (tmp_path / "part" / f".data.{'0' * 16}.part").touch()  # of a writer that was killed
    (tmp_path / "part" / ".mine.part").touch()
    for number in range(300 * many):
        (tmp_path / "part" / str(number)).touch()
    publish_folder(tmp_path / "part", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "data").read_text() == "new" and not (tmp_path / "final" / "other").exists()
    assert {p.name for p in (tmp_path / "final").iterdir() if not p.name.isdigit()} == {"data", ".mine.part"}


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_regular(tmp_path / "a") == b"abc"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "missing", "link to a pipe"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = {"folder": tmp_path, "device": Path("/dev/zero")}.get(kind, tmp_path / "x")
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(DataError, match=str(path)):
        read_regular(path, what="media file")


def test_a_sparse_file_that_claims_to_be_huge_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="too large"):
        read_regular(tmp_path / "big")
