"""Stage `fetch` against a hub in a thread: what arrives, what a cut transfer does, what a user without a hub reads."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from stand_ins.archives import tar_of, zip_of
from stand_ins.hub_stand_in import COMMIT, Hub, serve

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, HubError, UserError
from mmrlhf.stages import fetch

BIG = os.urandom(300_000)


def released_files() -> dict[str, bytes]:
    return {
        "data.jsonl": b'{"id": "a"}\n',
        "long.zip": zip_of({"long/a.jpg": b"A", "__MACOSX/long/._a.jpg": b"x"}),
        "short.zip": zip_of({"b.jpg": b"B"}),
        "video.tar.gz": gzip.compress(tar_of({"./video/clip/0.jpg": b"V"}), mtime=0),
        "data/train-00000.parquet": b"viewer copy",
    }


@pytest.fixture(autouse=True)
def hub_settings(monkeypatch, tmp_path):
    """The hub library must neither look into the user's cache nor believe an offline switch of this machine."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield
    huggingface_hub.close_session()


def fetch_from(hub: Hub, out: Path, runtime: Runtime, **changes) -> dict:
    settings = {"repo_id": hub.repo_id, "repo_type": hub.repo_type, "endpoint": hub.url, "allow_patterns": None}
    return fetch.run(out, **{**settings, **changes}, runtime=runtime)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_data_set_arrives_in_the_released_layout(tmp_path, runtime, caplog):
    caplog.set_level(logging.INFO, "mmrlhf")
    with serve(Hub(released_files())) as hub:
        summary = fetch_from(hub, tmp_path, runtime, allow_patterns=["*.jsonl", "*.zip", "*.tar.gz"])
    assert tree(tmp_path / "files") == {
        "data.jsonl": b'{"id": "a"}\n',
        "long/a.jpg": b"A",
        "short/b.jpg": b"B",
        "video/clip/0.jpg": b"V",
    }
    assert summary["commit"] == COMMIT and summary["files"] == 4
    assert summary["unpacked"] == {"long.zip": 1, "short.zip": 1, "video.tar.gz": 1}
    assert "4 files" in caplog.text and "free on the disk" in caplog.text


def test_a_model_keeps_its_files_as_they_are(tmp_path, runtime):
    files = {"config.json": b"{}", "extra.zip": zip_of({"x": b"x"})}
    with serve(Hub(files, repo_id="someone/some-model", repo_type="model")) as hub:
        fetch_from(hub, tmp_path, runtime)
    assert tree(tmp_path / "files") == files


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # 10 MB: all of this file in one
    with serve(Hub({"big.bin": BIG}, repo_type="model", cuts={"big.bin": 1})) as hub:
        fetch_from(hub, tmp_path, runtime)
    assert tree(tmp_path / "files") == {"big.bin": BIG}
    assert hub.ranges == [("big.bin", None), ("big.bin", f"bytes={len(BIG) // 2}-")]


def test_a_second_run_fetches_only_what_the_first_one_missed(tmp_path, runtime, monkeypatch):
    files = {"a.bin": BIG, "b.bin": BIG[::-1]}
    with serve(Hub(files, repo_type="model")) as hub:
        download = fetch.snapshot_download

        def stops_after_a(*args, **kwargs):
            download(*args, **{**kwargs, "allow_patterns": ["a.bin"]})
            raise KeyboardInterrupt

        monkeypatch.setattr(fetch, "snapshot_download", stops_after_a)
        with pytest.raises(KeyboardInterrupt):
            fetch_from(hub, tmp_path, runtime)
        monkeypatch.setattr(fetch, "snapshot_download", download)
        fetch_from(hub, tmp_path, runtime)
    assert tree(tmp_path / "files") == files
    assert [name for name, _ in hub.ranges] == ["a.bin", "b.bin"]


def test_files_that_stay_away_are_an_error_and_not_a_short_folder(tmp_path, runtime, monkeypatch):
    with serve(Hub({"a.bin": b"a", "b.bin": b"b"}, repo_type="model")) as hub:
        monkeypatch.setattr(fetch, "snapshot_download", lambda *args, **kwargs: None)
        with pytest.raises(HubError, match="2 of 2 files"):
            fetch_from(hub, tmp_path, runtime)


def test_a_damaged_archive_is_named(tmp_path, runtime):
    with serve(Hub({"long.zip": b"not a zip at all" * 10})) as hub:
        with pytest.raises(DataError, match=r"damaged[\s\S]*long\.zip"):
            fetch_from(hub, tmp_path, runtime)


def test_a_small_disk_is_refused_before_anything_is_fetched(tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=9, used=9, free=1000))
    with serve(Hub({"big.bin": BIG}, repo_type="model")) as hub:
        with pytest.raises(UserError, match=r"does not fit[\s\S]*300\.0 KB"):
            fetch_from(hub, tmp_path, runtime)
    assert hub.ranges == []


def test_patterns_that_match_nothing_list_what_there_is(tmp_path, runtime):
    with serve(Hub({"a.bin": b"a"})) as hub:
        with pytest.raises(ConfigError, match=r"\*\.parquet[\s\S]*a\.bin"):
            fetch_from(hub, tmp_path, runtime, allow_patterns=["*.parquet"])


@pytest.mark.parametrize(("status", "said"), [(401, "logged in"), (404, "no repository"), (403, "403"), (500, "500")])
def test_a_hub_that_refuses_says_which_folders_to_give(tmp_path, runtime, status, said):
    with serve(Hub({"a": b"a"}, status=status)) as hub:
        with pytest.raises(HubError, match=said) as caught:
            fetch_from(hub, tmp_path, runtime)
    assert "data.root=DIR" in str(caught.value) and "model.path=DIR" in str(caught.value)


def test_without_a_network_it_stops_at_once(tmp_path, runtime):
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(HubError, match="cannot be reached") as caught:
            fetch_from(Hub({}, url=f"http://127.0.0.1:{unused.getsockname()[1]}"), tmp_path, runtime)
    assert time.monotonic() - started < 5
    assert "data.root=DIR" in str(caught.value)


def test_a_hub_that_never_answers_does_not_hang(tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(fetch, "_SECONDS_TO_ANSWER", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(HubError, match="cannot be reached"):
            fetch_from(Hub({}, url=f"http://127.0.0.1:{silent.getsockname()[1]}"), tmp_path, runtime)
    assert time.monotonic() - started < 5


def test_offline_mode_is_honoured(tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="cannot be reached"):
        fetch_from(Hub({}, url="http://127.0.0.1:9"), tmp_path, runtime)


@pytest.mark.parametrize(("number", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1536, "1.5 KB"), (9e13, "90.0 TB")])
def test_bytes_are_written_for_people(number, text):
    assert fetch.format_bytes(number) == text


def test_names_that_read_like_patterns_are_names(tmp_path, runtime):
    with serve(Hub({"a[1].bin": b"one", "a1.bin": b"other"}, repo_type="model")) as hub:
        fetch_from(hub, tmp_path, runtime, allow_patterns=["a[[]*"])
    assert tree(tmp_path / "files") == {"a[1].bin": b"one"}
