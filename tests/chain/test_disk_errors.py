"""What a disk refuses is one screen that names the place; other errors keep their traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrlhf.chain.disk_errors import disk_errors
from mmrlhf.errors import ConfigError, DataError, UserError
from mmrlhf.files import expanded


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_what_is_free(tmp_path: Path, number: int) -> None:
    """A write says no file's name, an open does; libraries raise their own error from it."""
    for full in (OSError(number, os.strerror(number)), OSError(number, os.strerror(number), str(tmp_path / "a" / "b"))):
        with pytest.raises(UserError, match="a disk is full") as caught, disk_errors(tmp_path / "store"):
            try:
                raise full
            except OSError as error:
                raise RuntimeError("cannot write a shard") from error
        assert f"MiB free in {tmp_path}" in str(caught.value) and "paths.artifacts" in str(caught.value)
        assert caught.value.where == (full.filename or tmp_path / "store")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_libraries_that_write_for_themselves_are_understood() -> None:
    import pyarrow
    import torch

    def with_arrow() -> None:
        with pyarrow.OSFile("/dev/full", "wb") as file:
            file.write(b"0" * 2**20)

    def with_torch() -> None:
        torch.save(torch.zeros(2**20), "/dev/full")

    def with_python() -> None:
        Path("/dev/full").write_bytes(b"0" * 2**20)

    for write in (with_arrow, with_torch, with_python):
        with pytest.raises(UserError, match="a disk is full"), disk_errors():
            write()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO])
def test_what_is_closed_is_named(number: int) -> None:
    with pytest.raises(UserError, match="cannot be used") as caught, disk_errors():
        raise OSError(number, os.strerror(number), "/store/pack")
    assert caught.value.where == "/store/pack" and os.strerror(number) in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, Path.read_bytes, lambda path: (path / "b").mkdir()])
def test_what_stands_in_the_way_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """A file where a folder is wanted, a folder where a file is, and either below a file."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    place = tmp_path / {Path.mkdir: "file", Path.touch: "file/a", Path.read_bytes: "folder"}.get(make, "file")
    with pytest.raises(UserError, match="cannot be made here") as caught, disk_errors():
        make(place)
    assert str(place) in str(caught.value.where) and caught.value.fix is not None


@pytest.mark.parametrize(
    "error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "gone", "/a"), PermissionError(errno.EACCES, "a socket"),
              ConnectionResetError(errno.ECONNRESET, "reset")], ids=repr,
)  # fmt: skip
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_errors():
        raise error
    assert caught.value is error


def test_errors_in_a_circle_end() -> None:
    one, two = KeyError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    with pytest.raises(KeyError, match="one"), disk_errors():
        raise one


def test_a_mistake_that_is_told_already_is_not_told_anew() -> None:
    with pytest.raises(DataError, match="as it was"), disk_errors():
        raise DataError("as it was") from OSError(errno.ENOSPC, "full")


def test_a_home_folder_that_is_nobodys_is_named() -> None:
    assert expanded("~") == Path.home() and expanded("a/~b") == Path("a/~b")
    with pytest.raises(ConfigError, match="home folder") as caught:
        expanded("~no-such-user-here/data")
    assert caught.value.given == "~no-such-user-here/data"
