"""Layouts that are more than one table: MMPR's meta.json, LLaMA-Factory's dataset_info.json, a folder of `datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from stand_ins.published_rows import groups
from stand_ins.sample_groups import picture, write_records

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.draft import Draft
from mmrlhf.records.layouts.mmpr import import_mmpr
from mmrlhf.records.layouts.read import import_layout

PAIR = {"question": "what?", "chosen": "good", "rejected": "bad"}


def put_picture(root: Path, path: str, shade: int) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(picture(shade=shade))


@pytest.fixture
def mmpr(tmp_path: Path) -> Path:
    """Two files of pairs with pictures in folders of their own, and one that meta.json does not name."""
    root = tmp_path / "MMPR-v1.2"
    several = {**PAIR, "image": ["a.jpg", "b.jpg"], "question": "Image-1: <image>\nImage-2: <image>\nwhat?"}
    write_records(
        root / "annotations", "ai2d.jsonl", [{**PAIR, "image": "x.jpg"}, {**PAIR, "image": "x.jpg", "rejected": "c"}]
    )
    write_records(root / "annotations", "chart.jsonl", [several, {**PAIR, "image": "gone.jpg"}])
    write_records(root / "annotations", "other.jsonl", [{**PAIR, "image": "ai2d/x.jpg", "question": "who?"}])
    for number, path in enumerate(("images/ai2d/x.jpg", "images/chart/qa/a.jpg", "images/chart/qa/b.jpg")):
        put_picture(root, path, number)
    entry = {"data_augment": False, "repeat_time": 1, "length": 2}
    meta = {
        "ai2d": {"root": "MMPR-v1.2/images/ai2d", "annotation": "MMPR-v1.2/annotations/ai2d.jsonl", **entry},
        "chart": {"root": "MMPR-v1.2/images/chart/qa", "annotation": "MMPR-v1.2/annotations/chart.jsonl", **entry},
    }
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def test_every_file_of_meta_json_with_its_own_pictures(mmpr: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, several, other = [
        item.load()
        for item in import_layout(mmpr)
        if isinstance(item, Draft) and item.where != "annotations/chart.jsonl:2"
    ]
    assert [response.text for response in first.responses] == ["good", "bad", "c"] and first.category == "images"
    assert several.prompt == Conversation((Turn("user", ("Image-1: ", IMAGE, "\nImage-2: ", IMAGE, "\nwhat?")),))
    assert [media.data[0] for media in several.media] == [picture(shade=1), picture(shade=2)]
    assert other.media[0].data[0] == picture(shade=0) and "does not name annotations/other.jsonl" in caplog.text
    with pytest.raises(DataError, match="media file is missing"):
        groups(mmpr)
    assert len(groups(mmpr.parent / "MMPR-v1.2", layout="mmpr", file="ai2d.jsonl")) == 1
    assert len(list(import_mmpr(mmpr, file="other.jsonl"))) == 1


def test_the_folder_above_is_fine_and_what_is_missing_is_named(mmpr: Path) -> None:
    meta = mmpr / "meta.json"
    (mmpr.parent / "meta.json").write_text(meta.read_text())
    assert len(list(import_layout(mmpr.parent))) == 4
    for content, words in (
        ("[]", "another structure"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": {"root": "x"}}', "another structure"),
    ):
        meta.write_text(content)
        with pytest.raises(DataError, match=words):
            import_mmpr(mmpr)
    for name in ("annotations/nothing.jsonl", "x" * 300):
        meta.write_text(json.dumps({"a": {"root": "images", "annotation": name}}))
        with pytest.raises(DataError, match=f"does not exist(?s:.)*{name}"):
            import_mmpr(mmpr)
    assert len(list(import_mmpr(mmpr.parent, file=""))) == 4, "no name is given"
    with pytest.raises(DataError, match="no file of meta.json"):
        import_mmpr(mmpr.parent, file="nothing.jsonl")


SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "be kind"},
        {"from": "human", "value": "one"},
        {"from": "gpt", "value": "two"},
        {"from": "human", "value": "<image>three"},
    ],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
    "images": ["pics/0.jpg"],
}
ALPACA = {
    "ask": "add", "more": "3", "sys": "be kind", "past": [["one", "two"]], "best": "good", "worst": "bad",
    "pictures": ["pics/0.jpg"],
}  # fmt: skip
RENAMED = {
    "talk": [{"who": "USER", "says": "one"}, {"who": "BOT", "says": "two"}, {"who": "USER", "says": "three"}],
    "up": {"who": "BOT", "says": "good"},
    "down": {"who": "BOT", "says": "bad"},
}
INFO: dict[str, Any] = {
    "sharegpt": {
        "file_name": "sharegpt.json", "ranking": True, "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"},
    },
    "alpaca": {
        "file_name": "alpaca", "ranking": True,
        "columns": {"prompt": "ask", "query": "more", "system": "sys", "history": "past", "chosen": "best",
                    "rejected": "worst", "images": "pictures"},
    },
    "renamed": {
        "file_name": "renamed.json", "ranking": True, "formatting": "sharegpt",
        "columns": {"messages": "talk", "chosen": "up", "rejected": "down"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "USER", "assistant_tag": "BOT"},
    },
    "absent": {"file_name": "absent.json", "ranking": True},
    "identity": {"file_name": "identity.json"},
    "hub": {"hf_hub_url": "x/y", "ranking": True},
}  # fmt: skip


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    put_picture(tmp_path, "pics/0.jpg", 1)
    (tmp_path / "alpaca").mkdir()
    for name, row in (("sharegpt.json", SHAREGPT), ("alpaca/a.json", ALPACA), ("renamed.json", RENAMED)):
        (tmp_path / name).write_text(json.dumps([row]))
    (tmp_path / "identity.json").write_text(json.dumps([{"instruction": "q", "output": "a"}]))
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    return tmp_path


def test_what_dataset_info_describes(factory: Path) -> None:
    """System texts, earlier turns, input and pictures, whatever columns and roles are called."""
    [sharegpt] = groups(factory, dataset="sharegpt")
    turns = (Turn("system", ("be kind",)), Turn("user", ("one",)), Turn("assistant", ("two",)))
    assert sharegpt.prompt == Conversation((*turns, Turn("user", (IMAGE, "three"))))
    assert sharegpt.source == "sharegpt" and sharegpt.media[0].data[0] == picture(shade=1)
    [alpaca] = groups(factory, layout="llama_factory", dataset="alpaca")
    assert alpaca.prompt == Conversation((turns[0], Turn("user", (IMAGE, "one")), turns[2], Turn("user", ("add\n3",))))
    [renamed] = groups(factory, dataset="renamed")
    assert renamed.prompt == Conversation((*turns[1:], Turn("user", ("three",))))
    assert {tuple(response.text for response in group.responses) for group in (sharegpt, alpaca, renamed)} == {
        ("good", "bad")
    }


def test_which_data_set_is_meant(factory: Path) -> None:
    with pytest.raises(DataError, match=r"which data set(?s:.)*sharegpt, alpaca, renamed(?s:.)*importer\.dataset=NAME"):
        import_layout(factory)
    with pytest.raises(DataError, match="no such data set"):
        import_layout(factory, dataset="identity")
    for name in ("sharegpt.json", "renamed.json"):
        (factory / name).unlink()
    assert len(groups(factory)) == 1
    (factory / "dataset_info.json").write_text(json.dumps({"long": {"file_name": "x" * 300, "ranking": True}}))
    with pytest.raises(DataError, match="no file of long"):
        import_layout(factory)
    (factory / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        import_layout(factory, layout="llama_factory")


@pytest.mark.parametrize("layout", ["auto", "llama_factory", "preference_rows"])
def test_a_data_set_is_named_only_where_one_is_described(layout: str, tmp_path: Path) -> None:
    root = write_records(tmp_path, "rows.jsonl", [{"instruction": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(ConfigError, match=r"importer\.dataset names(?s:.)*dataset_info\.json"):
        import_layout(root, layout=layout, dataset="mine")
    assert len(groups(root, layout=layout)) == 1


def test_calls_of_tools_are_refused(factory: Path) -> None:
    called = [*SHAREGPT["conversations"][:3], {"from": "observation", "value": "{}"}]
    (factory / "sharegpt.json").write_text(json.dumps([SHAREGPT, {**SHAREGPT, "conversations": called}]))
    with pytest.raises(DataError, match=r"sharegpt\.json:2:conversations\[3\]:from(?s:.)*calls of tools"):
        groups(factory, dataset="sharegpt")


def save(root: Path, rows: list[dict[str, Any]], *, files: int = 2, **state: Any) -> Path:
    """What `Dataset.save_to_disk` writes: Arrow streams of small batches, and state.json that names them in order."""
    root.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    share = -(-len(rows) // files)
    schema = pa.Table.from_pylist(rows).schema
    for number, name in enumerate(names):
        part = pa.Table.from_pylist(rows[number * share : (number + 1) * share], schema=schema)
        with pa.OSFile(str(root / name), "wb") as out, pa.ipc.new_stream(out, schema) as stream:
            for batch in part.to_batches(max_chunksize=2):
                stream.write_batch(batch)
    described = {"_data_files": [{"filename": name} for name in names], "_split": "train", **state}
    (root / "state.json").write_text(json.dumps(described))
    (root / "dataset_info.json").write_text(json.dumps({"builder_name": "parquet", "features": {}}))
    return root


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    """Rows in the order of state.json; pictures inside are read again from their own row."""
    rows = [{"prompt": f"q{n}", **PAIR, "image": {"bytes": picture(shade=n), "path": None}} for n in range(7)]
    rows = [{name: value for name, value in row.items() if name != "question"} for row in rows]
    root = save(tmp_path / "set" / "train", rows)
    found = groups(root)
    assert [group.prompt.question for group in found] == [f"q{n}" for n in range(7)]
    assert [group.media[0].data[0] for group in found] == [picture(shade=n) for n in range(7)]
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert len(groups(tmp_path / "set", layout="preference_rows")) == 7
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(DataError, match="several parts"):
        import_layout(tmp_path / "set")
    assert len(groups(tmp_path / "set", file="train/*.arrow")) == 7
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["."]}))
    with pytest.raises(DataError, match="no layout is known"):
        import_layout(tmp_path / "set")


def test_a_saved_folder_that_is_not_whole(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match="selection of rows"):
        import_layout(save(tmp_path / "selected", rows, _indices_data_files=[{"filename": "indices.arrow"}]))
    root = save(tmp_path / "cut", rows, files=1)
    [path] = root.glob("*.arrow")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="Arrow file cannot be read"):
        groups(root)
    path.unlink()
    with pytest.raises(DataError, match="lacks a file"):
        import_layout(root)
    (root / "state.json").write_text("[]")
    with pytest.raises(DataError, match="saved data set has another structure"):
        import_layout(root)
