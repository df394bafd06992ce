"""Stage `publish` with the hub's real client, against a hub in a thread."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from markdown_it import MarkdownIt
from stand_ins.hub_stand_in import COMMIT, Hub, serve

from mmrlhf import Policy, load_shards
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import publish
from mmrlhf.types import PreferenceGroup, Response

REPO = "someone/something"


@pytest.fixture(autouse=True)
def logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token of the test's, and no look at this machine's."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")


def _unpack(hub: Hub, folder: Path) -> Path:
    for name, data in hub.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_without_confirm_it_says_what_it_would_do(
    tmp_path: Path, small_policy: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve(Hub({}, REPO, "model")) as hub:
        summary = publish.run(tmp_path, folder=small_policy, repo=REPO, endpoint=hub.url, runtime=runtime)
        assert not hub.made and not hub.messages and not hub.files
    size = sum(file.stat().st_size for file in small_policy.rglob("*") if file.is_file())
    assert (summary["what"], summary["sent"], summary["bytes"]) == ("policy", False, size)
    for part in ("model.safetensors", f"{hub.url}/{REPO} (private", "publish.confirm=true"):
        assert part in caplog.text
    assert json.loads((tmp_path / "metrics.json").read_text())["sent"] is False


def test_a_policy_arrives_as_it_was(tmp_path: Path, small_policy: Path, runtime: Runtime) -> None:
    (tmp_path / "out").mkdir()
    with serve(Hub({}, REPO, "model")) as hub:
        summary = publish.run(
            tmp_path / "out", folder=small_policy, repo=REPO, confirm=True, endpoint=hub.url, runtime=runtime
        )
    (made,) = hub.made
    assert made["name"] == "something" and made["organization"] == "someone" and made["visibility"] == "private"
    assert summary["commit"] == COMMIT and summary["url"].startswith(hub.url) and len(hub.messages) == 1
    assert set(hub.files) == {file.name for file in small_policy.iterdir()}
    sent = Policy.from_pretrained(_unpack(hub, tmp_path / "fetched"), device="cpu")
    own = Policy.from_pretrained(small_policy, device="cpu")
    assert sent.logprob(None, "red ?", ["blue circle"]) == own.logprob(None, "red ?", ["blue circle"])
    assert torch.equal(next(sent.model.parameters()), next(own.model.parameters()))


def test_a_packed_set_arrives_alone_and_with_a_card(tmp_path: Path, small_shards: Path, runtime: Runtime) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for file in small_shards.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "artifact.json").write_text('{"place": "/somewhere/on/this/machine"}')
    (tmp_path / "out").mkdir()
    with serve(Hub({}, REPO, "dataset")) as hub:
        publish.run(tmp_path / "out", folder=folder, repo=REPO, confirm=True, endpoint=hub.url, runtime=runtime)
    wanted = {file.name for file in small_shards.iterdir() if not file.name.endswith(".done.parquet")}
    assert set(hub.files) == wanted | {"README.md"} and "index.parquet" in wanted
    fetched = load_shards(_unpack(hub, tmp_path / "fetched"))
    assert [group.key for group in fetched] == [group.key for group in load_shards(small_shards)]
    card = hub.files["README.md"].decode()
    assert "14 queries" in card and "| long | 7 |" in card


def test_a_card_names_the_licences_of_all_records(tmp_path: Path) -> None:
    """Only the last of 1,101 records names the second one; one names none."""
    licences = ["cc-by-4.0"] * 1099 + ["", "cc-by-nc-4.0"]
    groups = [
        PreferenceGroup(f"q{i}", "?", (Response("a", rank=1), Response("b", rank=2)), source="there", licence=name)
        for i, name in enumerate(licences)
    ]
    write_shards(groups, tmp_path)
    card = publish.data_card(Index.load(tmp_path))
    assert "Licences: cc-by-4.0 (1,099), cc-by-nc-4.0 (1), none in 1." in card
    assert "Sources that the records name: there. " in card


def test_what_strangers_wrote_is_no_markup_of_a_card(tmp_path: Path) -> None:
    text = "a|b <script>x</script>\n\n# [x](http://y) ![z](http://y) ```"
    made = PreferenceGroup("q", "?", (Response("a", rank=1),), category=text, source=text, licence=text)
    write_shards([made], tmp_path)
    card = publish.data_card(Index.load(tmp_path))
    page = MarkdownIt("commonmark").enable("table").render(card.split("---", 2)[2])
    for tag in ("<script", "<a ", "<img"):
        assert tag not in page
    assert page.count("<h1>") == page.count("<code ") == 1 and page.count("<td>") == 2
    assert page.count("a|b &lt;script&gt;x&lt;/script&gt; # [x](http://y) ![z](http://y) ```") == 3


def test_a_damaged_set_is_not_published(tmp_path: Path, small_shards: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(small_shards, folder)
    _, shard, members = (index := Index.load(folder)).entries.place(len(index) - 1)
    with (folder / shard).open("r+b") as file:
        file.seek(members["json"][0])
        file.write(b"?")
    with pytest.raises(DataError, match="member is damaged"):
        publish.pack_parcel(folder)


def test_a_reward_model_is_told_from_a_policy(critic: Path) -> None:
    parcel = publish.pack_parcel(critic)
    assert parcel.what == "reward model" and "score_head.safetensors" in parcel.files


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a b/c", "", "/c"])
def test_a_name_that_is_none_is_refused_before_anything(repo: str) -> None:
    with pytest.raises(ConfigError, match=r"publish\.repo"):
        publish.check_settings({"repo": repo})


def test_what_is_neither_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="nothing that can be published"):
        publish.run(tmp_path, folder=tmp_path, repo=REPO, confirm=True, runtime=runtime)


@pytest.mark.parametrize(("status", "message"), [(401, "does not let you write"), (403, "does not let you write")])
def test_a_hub_that_refuses_is_named(
    tmp_path: Path, small_policy: Path, runtime: Runtime, status: int, message: str
) -> None:
    with serve(Hub({}, REPO, "model", status=status)) as hub, pytest.raises(HubError, match=message):
        publish.run(tmp_path, folder=small_policy, repo=REPO, confirm=True, endpoint=hub.url, runtime=runtime)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's library at its HTTP client
@pytest.mark.parametrize(
    ("fault", "xet", "message"),
    [
        ({"storage": 403}, False, "does not let you write(.|\n)*403"),
        ({"storage": 400}, False, "did not take it(.|\n)*refused by the storage"),
        ({"storage": 400}, True, "did not take it(.|\n)*404"),  # the stand-in has no such storage
        ({"garbled": True}, False, "did not take it"),
    ],
)
def test_an_upload_that_fails_is_an_error_of_the_hub(
    tmp_path: Path,
    small_policy: Path,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict,
    xet: bool,
    message: str,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", not xet)
    with serve(Hub({}, REPO, "model", **fault)) as hub, pytest.raises(HubError, match=message):
        publish.run(tmp_path, folder=small_policy, repo=REPO, confirm=True, endpoint=hub.url, runtime=runtime)
