"""Checkpoints by hub id, against a hub in a thread: how much there is to fetch, and when no hub is needed."""

from __future__ import annotations

import logging
from pathlib import Path

import huggingface_hub
import pytest
from stand_ins.hub_stand_in import COMMIT, Hub, serve

from mmrlhf.errors import HubError, UserError
from mmrlhf.models import hub

FILES = {"config.json": b"{}", "model.safetensors": b"x" * 5000, "pytorch_model.bin": b"x" * 9000}
NAME = "someone/some-model"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An empty cache, and a hub library that takes its endpoint from the test."""
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path), "HF_TOKEN_PATH": "none"}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    hub.check_checkpoint.cache_clear()
    yield
    huggingface_hub.close_session()


def _put_into_cache(cache: Path, *names: str) -> None:
    """Lay files down as the hub library does."""
    root = cache / f"models--{NAME.replace('/', '--')}"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (root / folder).mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name in names:
        (root / "snapshots" / COMMIT / name).write_bytes(FILES[name])


def test_it_says_how_much_there_is_to_fetch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmrlhf")
    with serve(Hub(FILES, repo_id=NAME, repo_type="model")) as there:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", there.url)
        hub.check_checkpoint(NAME)
    assert "5.0 KB to fetch" in caplog.text and there.ranges == [], "weights in one format, and nothing fetched"


def test_what_is_cached_needs_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmrlhf")
    with serve(Hub(FILES, repo_id=NAME, repo_type="model")) as there:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", there.url)
        _put_into_cache(tmp_path, "config.json", "model.safetensors")
        hub.check_checkpoint(NAME)
    assert "to fetch" not in caplog.text
    hub.check_checkpoint.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.check_checkpoint(NAME)
    assert "from the cache" in caplog.text


def test_without_either_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"no folder of this name here(?s:.)*data\.root=DIR(?s:.)*model\.path=DIR"):
        hub.check_checkpoint(NAME)


def test_a_small_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "free_bytes", lambda folder: 1000)
    with serve(Hub(FILES, repo_id=NAME, repo_type="model")) as there:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", there.url)
        with pytest.raises(UserError, match=r"does not fit(?s:.)*HF_HOME"):
            hub.check_checkpoint(NAME)
