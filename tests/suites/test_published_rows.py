"""Which files of a data set are read, what is fetched of it, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from stand_ins import hub_stand_in
from stand_ins.hub_stand_in import Hub, serve

from mmrlhf.errors import DataError, HubError
from mmrlhf.suites.columns import COLUMNS
from mmrlhf.suites.harness_program import files_of, tables_of
from mmrlhf.suites.published_rows import fetch, parquet_files, read_rows
from mmrlhf.suites.standins import write_standin

DOCVQA = [
    *(f"DocVQA/{split}-0000{n}-of-00002.parquet" for split in ("train", "validation", "test") for n in (0, 1)),
    *(f"InfographicVQA/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
]


@pytest.mark.parametrize(
    ("names", "subset", "split", "wanted"),
    [
        (DOCVQA, "DocVQA", "validation", ["DocVQA/validation-00000-of-00002.parquet",
                                          "DocVQA/validation-00001-of-00002.parquet"]),
        (DOCVQA[:6], "InfographicVQA", "validation", []),  # another subset's questions are no answer
        (["mmstar.parquet", "MMStar.tsv"], None, "val", ["mmstar.parquet"]),
        (["data/train-0.parquet"], None, "test", []),
        (["data/testmini-0.parquet", "data/test-0.parquet"], None, "test", ["data/test-0.parquet"]),
        (["data/test-0.parquet", "data/testmini-0.parquet"], None, "testmini", ["data/testmini-0.parquet"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], None, "test", ["default/test/0000.parquet"]),
        (["validation-0.parquet"], "DocVQA", "validation", ["validation-0.parquet"]),  # a folder that is the subset
        (["data/validation-0.parquet"], "DocVQA", "validation", ["data/validation-0.parquet"]),
        (["data/part-0.parquet", "data/train-0.parquet"], None, "test", ["data/part-0.parquet"]),
        (["test500/0.parquet", "train/0.parquet"], None, "test500", ["test500/0.parquet"]),
    ],
)  # fmt: skip
def test_a_splits_files(names, subset, split, wanted, tmp_path):
    assert tables_of(names, subset, split) == wanted
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if wanted:
        assert files_of(tmp_path, subset, split) == [str(tmp_path / name) for name in wanted]
    else:
        with pytest.raises(ValueError, match="no Parquet files"):
            files_of(tmp_path, subset, split)


def test_a_folder_of_other_files_is_refused_and_named(tmp_path):
    write_standin("docvqa_val", tmp_path, documents=3, seed=0)
    with pytest.raises(DataError, match="no Parquet files") as caught:
        parquet_files(tmp_path, COLUMNS["infovqa_val"])
    assert caught.value.given == "only DocVQA/validation-00000-of-00001.parquet"
    assert "InfographicVQA/validation-*.parquet" in str(caught.value.expected)


def test_a_download_that_was_cut_off_is_not_half_a_benchmark(tmp_path):
    write_standin("pope", tmp_path, documents=3, seed=0)
    (part,) = tmp_path.glob("*.parquet")
    for number in (0, 2):
        shutil.copy(part, tmp_path / f"test-0000{number}-of-00003.parquet")
    part.unlink()
    with pytest.raises(DataError, match="not complete") as caught:
        list(read_rows(tmp_path, COLUMNS["pope"], limit=None, seed=0))
    assert caught.value.given == "no test-00001-of-00003.parquet"
    shutil.copy(tmp_path / "test-00000-of-00003.parquet", tmp_path / "test-00001-of-00003.parquet")
    assert len(list(read_rows(tmp_path, COLUMNS["pope"], limit=None, seed=0))) == 9


# ---- from a hub


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A hub that has DocVQA's two subsets, to which the hub library goes, with an empty cache."""
    files = {name: name.encode() for name in [*DOCVQA, "README.md"]}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serve(Hub(files, repo_id=COLUMNS["docvqa_val"].repo)) as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found
    huggingface_hub.close_session()


def fetched(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))


def test_no_more_is_fetched_than_is_read(hub):
    """One split of one subset: data sets have up to 45 GB of others."""
    folder = fetch(COLUMNS["infovqa_val"], None)
    assert fetched(folder) == ["InfographicVQA/validation-00000-of-00001.parquet"]
    assert folder.name == hub_stand_in.COMMIT
    assert fetched(fetch(COLUMNS["docvqa_val"], hub_stand_in.COMMIT)) == [
        "DocVQA/validation-00000-of-00002.parquet", "DocVQA/validation-00001-of-00002.parquet",
        "InfographicVQA/validation-00000-of-00001.parquet",
    ]  # fmt: skip


def test_what_was_fetched_is_read_where_the_hub_is_gone(hub, monkeypatch):
    folder = fetch(COLUMNS["infovqa_val"], None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(COLUMNS["infovqa_val"], hub_stand_in.COMMIT) == folder


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_hub_that_refuses_is_named(hub, status):
    hub.status = status
    with pytest.raises(HubError, match="cannot be fetched") as caught:
        fetch(COLUMNS["docvqa_val"], "c" * 40)
    assert caught.value.where == f"lmms-lab-encoder/DocVQA@{'c' * 40}" and caught.value.given


def test_a_data_set_of_another_layout_is_refused_before_anything_is_fetched(hub):
    hub.files = {"data/train-00000-of-00001.parquet": b"x", "README.md": b"x"}
    with pytest.raises(HubError, match="another layout") as caught:
        fetch(COLUMNS["docvqa_val"], None)
    assert "DocVQA/validation-*.parquet" in str(caught.value.expected) and not hub.ranges
    assert caught.value.given == "data/train-00000-of-00001.parquet, README.md"
