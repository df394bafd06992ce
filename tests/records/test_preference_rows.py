"""Pairs in Parquet, JSON lines and JSON arrays, with images as paths or inside the record."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stand_ins.sample_groups import picture, write_pictures

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records import embedded
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.embedded import Embedded
from mmrlhf.records.pair_rows import import_preference_rows
from mmrlhf.records.sources import file_source


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"q{number}", "chosen": f"good {number}", "rejected": f"bad {number}", **fields}


def table(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def read(root: Path, **options: Any) -> tuple[list[Draft], list[Rejection]]:
    items = list(import_preference_rows(root, **options))
    return [i for i in items if isinstance(i, Draft)], [i for i in items if isinstance(i, Rejection)]


def test_a_hub_data_set_of_several_files(tmp_path: Path) -> None:
    """Two row groups a file; each image is read again from its own."""
    data = [picture(shade=10 * number) for number in range(6)]
    rows = [pair(n, images=[{"bytes": data[n], "path": None}]) for n in range(6)]
    table(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:4], row_group_size=2)
    table(tmp_path / "data" / "train-00001-of-00002.parquet", rows[4:])
    drafts, rejections = read(tmp_path)
    assert not rejections and [draft.group.prompt.plain for draft in drafts] == [f"q{n}" for n in range(6)]
    assert drafts[5].where == "data/train-00001-of-00002.parquet:2"
    for draft, expected in reversed(list(zip(drafts, data, strict=True))):
        [media] = draft.load().media
        assert (media.data, media.names) == ((expected,), ("0.jpg",))
    assert len(read(tmp_path, file="data/*-00001-*.parquet")[0]) == 2


def test_rlaif_v_rows_of_one_question_become_one_query(tmp_path: Path) -> None:
    """The same picture under two names is the same picture; another picture is another query."""
    image, other = ({"bytes": picture(shade=shade), "path": f"{shade}.jpg"} for shade in (1, 2))
    rows = [
        {"idx": 0, "question": "q", "image": image, "chosen": "a", "rejected": "b", "origin_dataset": "COCO"},
        {"idx": 1, "question": "q", "image": {**image, "path": "x.jpg"}, "chosen": "a", "rejected": "c"},
        {"idx": 2, "question": "q", "image": other, "chosen": "a", "rejected": "b"},
    ]
    table(tmp_path / "RLAIF-V-Dataset_000.parquet", rows)
    first, second = read(tmp_path, source="RLAIF-V")[0]
    assert [response.text for response in first.group.responses] == ["a", "b", "c"]
    assert [response.rank for response in first.group.responses] == [1, 2, 2]
    assert (first.id, first.group.key, first.group.category, first.group.source) == ("0", "0", "COCO", "RLAIF-V")
    assert second.id == "2" and isinstance(second.media[0].ref, Embedded)
    by_id, _ = read(tmp_path, group_by="id")
    assert len(by_id) == 3


def test_llava_json_array_with_a_media_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "coco/1.jpg")
    turns = [{"from": "human", "value": "q\n<image>"}]
    row = {"id": "x", "image": "coco/1.jpg", "conversations": turns, "chosen": "a", "rejected": "b"}
    (tmp_path / "pairs.json").write_text(json.dumps([row, 3, {**row, "conversations": []}]))
    drafts, rejections = read(tmp_path, media_folder="images", on_bad_line="reject")
    assert (
        drafts[0].group.prompt == Conversation((Turn("user", ("q\n", IMAGE)),)) and drafts[0].group.category == "coco"
    )
    assert drafts[0].load().media[0].data == ((tmp_path / "images" / "coco" / "1.jpg").read_bytes(),)
    assert [item.where.split(" ")[0] for item in rejections] == ["pairs.json:2", "pairs.json:3:prompt"]


@pytest.mark.parametrize("form", ["bytes", "data url"])
def test_json_lines_may_hold_base64(tmp_path: Path, form: str) -> None:
    text = base64.b64encode(picture()).decode()
    image = {"bytes": text, "path": "a.jpg"} if form == "bytes" else f"data:image/jpeg;base64,{text}"
    lines = [json.dumps(pair(0)), json.dumps(pair(1, images=[image]))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    [plain, embedded], _ = read(tmp_path)
    assert plain.media == () and embedded.load().media[0].data == (picture(),)


def test_paths_in_an_image_column_are_paths(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.jpg")
    table(tmp_path / "t.parquet", [pair(0, images=[{"bytes": None, "path": "a.jpg"}])])
    [draft], _ = read(tmp_path)
    assert draft.media[0].ref == "a.jpg" and draft.load().media


def test_embedded_media_that_are_broken_or_change_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", [pair(n, image=data) for n, data in enumerate([b"junk", picture(), b""])])
    broken, good, empty = read(tmp_path)[0]
    with pytest.raises(DataError, match=r"t\.parquet:1:image 0"):
        broken.load()
    with pytest.raises(DataError, match="empty"):
        empty.load()
    table(path, [pair(n, image=picture(shade=9)) for n in range(3)])
    with pytest.raises(DataError, match="changed while"):
        good.load()
    path.unlink()
    with pytest.raises(DataError, match="changed while"):
        good.load()


@pytest.mark.parametrize("cut", [0, 3, 60, -4])
def test_a_cut_table_is_an_error_that_names_it(tmp_path: Path, cut: int) -> None:
    path = table(tmp_path / "t.parquet", [pair(0)])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"t\.parquet"):
        read(tmp_path, on_bad_line="reject")


def test_which_file_is_meant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no \*\.parquet"):
        read(tmp_path)
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).write_text(json.dumps([pair(0)]))
    with pytest.raises(DataError, match=r"several files(?s:.)*a\.jsonl, b\.json"):
        read(tmp_path)
    assert len(read(tmp_path, file="b.json")[0]) == len(read(tmp_path / "b.json")[0]) == 1
    with pytest.raises(ConfigError, match="no pattern"):
        read(tmp_path, file="/etc/*")


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    table(tmp_path / "t.parquet", [pair(0)])
    for options in ({"group_by": "prompt"}, {"preferred": "c"}):
        with pytest.raises(ConfigError):
            read(tmp_path, **options)


def test_a_table_of_something_else_says_so(tmp_path: Path) -> None:
    table(tmp_path / "t.parquet", [{"text": "x"}, {"text": "y"}])
    with pytest.raises(DataError, match=r"no line of the file(?s:.)*t\.parquet:1"):
        read(tmp_path, on_bad_line="reject")


def test_base64_with_escaped_slashes_is_a_picture(tmp_path: Path) -> None:
    """As PHP writes JSON."""
    text = json.dumps(pair(1, image=base64.b64encode(picture()).decode())).replace("/", "\\/")
    (tmp_path / "rows.jsonl").write_text(text + "\n")
    [draft] = import_preference_rows(tmp_path)
    assert isinstance(draft, Draft) and draft.load().media[0].data == (picture(),)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_each_column_and_each_record_is_read_once_for_its_media(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Pictures in five columns, or in one list: not the whole row group, or record, for each picture again."""
    pictures = [[picture(8, 8 + column + 5 * row) for column in range(5)] for row in range(3)]
    if suffix == ".parquet":
        rows = [
            {f"image_{column}": {"bytes": data, "path": None} for column, data in enumerate(row)} for row in pictures
        ]
        path = table(tmp_path / "rows.parquet", rows)
    else:
        path = tmp_path / "rows.jsonl"
        path.write_text(
            "".join(
                json.dumps({"images": [base64.b64encode(data).decode() for data in row]}) + "\n" for row in pictures
            )
        )
    found = [row for _, row in file_source(path).read() if isinstance(row, dict)]
    times = Counter[str]()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: (times.update([name]), function(*given, **named))[1]

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted("columns", pq.ParquetFile.read_row_group))
    monkeypatch.setattr(embedded, "read_row_at", counted("records", embedded.read_row_at))
    each = [row.get("images") or [*row.values()] for row in found]
    assert [[item.read() for item in items] for items in each] == pictures
    assert times == ({"columns": 5} if suffix == ".parquet" else {"records": 3})
