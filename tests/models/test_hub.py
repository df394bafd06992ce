"""Checkpoints by hub id, against a hub in a thread: how much there is to fetch, and when no hub is needed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save
from stand_ins.hub_stand_in import COMMIT, Hub, serve

from mmrlhf.errors import HubError, ModelError, UserError
from mmrlhf.models import hub
from mmrlhf.models.export import read_policy_card
from mmrlhf.models.heads import HeadSettings, build_head
from mmrlhf.models.promises import CARD_FILE, HEAD_FILE
from mmrlhf.models.reward_folder import starting_head

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


def _point_to(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub library ask, and download from, a stand-in."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", there.url)
    template = there.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def _trained_head() -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """A head that is not zero, and the files of a reward model's repository that are about it."""
    head = build_head("tanh2", 8)
    torch.nn.init.normal_(head.out.weight)
    card = {"head": "tanh2", "width": 8, "dimensions": [], "critique": "full"}
    return head.state_dict(), {HEAD_FILE: save(head.state_dict()), CARD_FILE: json.dumps(card).encode()}


def test_a_hub_ids_trained_head_is_trained_further(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a folder's; what a policy's repository says of its media counts as well; then also without any hub."""
    caplog.set_level(logging.INFO, "mmrlhf")
    trained, files = _trained_head()
    files["policy.json"] = json.dumps({"media": {"num_frames": 3}}).encode()
    with serve(Hub(FILES | files, repo_id=NAME, repo_type="model")) as there:
        _point_to(there, monkeypatch)
        heads = [starting_head(HeadSettings(), NAME, 8)]
        assert read_policy_card(NAME) == {"media": {"num_frames": 3}}
        assert "trained further" in caplog.text and "fresh" not in caplog.text
        with pytest.raises(ModelError, match=rf"another kind[\s\S]*{NAME}"):
            starting_head(HeadSettings("linear"), NAME, 8)
        assert float(starting_head(HeadSettings(fresh=True), NAME, 8).out.weight.detach().norm()) == 0
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    heads.append(starting_head(HeadSettings(), NAME, 8))
    assert all(torch.equal(head.state_dict()[name], value) for head in heads for name, value in trained.items())


def test_a_stock_repository_has_no_head(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And half of one is damage, as it is in a folder."""
    caplog.set_level(logging.INFO, "mmrlhf")
    with serve(Hub(dict(FILES), repo_id=NAME, repo_type="model")) as there:
        _point_to(there, monkeypatch)
        assert float(starting_head(HeadSettings(), NAME, 8).out.weight.detach().norm()) == 0
        assert "starts fresh, as the checkpoint has none" in caplog.text and read_policy_card(NAME) == {}
        there.files[HEAD_FILE] = _trained_head()[1][HEAD_FILE]
        with pytest.raises(ModelError, match=f"no {CARD_FILE}"):
            starting_head(HeadSettings(), NAME, 8)
