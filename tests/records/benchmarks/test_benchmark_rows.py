"""Benchmarks of reward models as they are published: rows in, ranked queries out; and what is no such row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stand_ins.clips import make_clip

from mmrlhf.errors import DataError
from mmrlhf.records.converted import import_converted
from mmrlhf.records.draft import Draft, Rejection


def found(root: Path, benchmark: str, **settings: Any) -> tuple[list[Draft], list[Rejection]]:
    convert = f"mmrlhf.records.benchmarks.{benchmark}.convert"
    items = list(import_converted(root, convert=convert, **settings))
    return [each for each in items if isinstance(each, Draft)], [each for each in items if isinstance(each, Rejection)]


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def two_row(record_id: str, right: int, wrong: int, **fields: Any) -> dict[str, Any]:
    """A row of RewardBench 2 with its published columns."""
    return {
        "id": record_id, "prompt": f"question {record_id}", "chosen": [f"right {n}" for n in range(right)],
        "rejected": [f"wrong {n}" for n in range(wrong)], "num_correct": right, "num_incorrect": wrong,
        "total_completions": right + wrong, "models": [f"model {n}" for n in range(right + wrong)],
        "subset": "Math", "additional_metadata": {"category": None, "method": "x"}, **fields,
    }  # fmt: skip


def test_rewardbench_2(tmp_path: Path) -> None:
    rows = [two_row("7", 1, 3), two_row("tied:3", 3, 2, subset="Ties"), two_row("8", 1, 3, num_correct=2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    (one, ties), (bad,) = found(tmp_path, "rewardbench_2")
    assert [(each.text, each.rank, each.model) for each in one.group.responses] == [
        ("right 0", 1, "model 0"), ("wrong 0", 2, "model 1"), ("wrong 1", 2, "model 2"), ("wrong 2", 2, "model 3")
    ]  # fmt: skip
    assert len(one.group.ranked_pairs()) == 3 and one.group.category == "Math"
    assert [each.rank for each in ties.group.responses] == [1, 1, 1, 2, 2] and len(ties.group.ranked_pairs()) == 6
    assert (ties.group.category, ties.group.meta["sample"]) == ("Ties", "tied:3")
    assert "num_correct is 2" in bad.where


def test_mr2bench(tmp_path: Path) -> None:
    """Ties among the best, an empty answer, a picture and a clip, and rankings that do not fit."""
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "b.mp4").write_bytes(make_clip(4))
    said = {"prompt": "What is it?", "responses": ["A", "B", "C", "D"], "rankings": [3, 1, 2, 4]}
    rows = [
        {**said, "image": "a.png"},
        {**said, "video": "b.mp4", "rankings": [1, 1, 3, 4]},
        {**said, "image": "a.png", "responses": ["A", " ", "E", "D"]},
        {**said, "image": "a.png", "rankings": [1, 2]},
    ]
    lines(tmp_path / "bench.jsonl", rows)
    (picture, clip, short), (bad,) = found(tmp_path, "mr2bench")
    assert [(each.text, each.rank) for each in picture.group.responses] == [("A", 3), ("B", 1), ("C", 2), ("D", 4)]
    assert (picture.group.category, clip.group.category) == ("image", "video")
    assert [media.kind for media in clip.load().media] == ["video"] and len(clip.group.ranked_pairs()) == 5
    assert [each.text for each in short.group.responses] == ["A", "E", "D"]
    assert len({each.group.key for each in (picture, clip, short)}) == 3, "rows have no ids of their own"
    assert "zip()" in bad.where or "shorter" in bad.where


@pytest.mark.parametrize(
    "names", [("video", "prompt", "chosen", "rejected", "dimension"),
              ("video_path", "question", "chosen_response", "rejected_response", "category")],
)  # fmt: skip
def test_video_rewardbench(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "b.mp4").write_bytes(make_clip(4))
    rows = [dict(zip(names, ("b.mp4", f"What {n}?", "a dog", "a cat", "safety"), strict=True)) for n in range(2)]
    lines(tmp_path / "bench.jsonl", [*rows, {"video": "b.mp4", "prompt": "And?", "chosen": "x", "dimension": "y"}])
    drafts, (bad,) = found(tmp_path, "video_rewardbench")
    assert [[(each.text, each.rank) for each in draft.group.responses] for draft in drafts] == [
        [("a dog", 1), ("a cat", 2)]
    ] * 2
    assert {draft.group.category for draft in drafts} == {"safety"} and drafts[0].load().media[0].kind == "video"
    assert "rejected" in bad.where


def test_mj_bench(tmp_path: Path) -> None:
    """One caption about two pictures that lie inside the table; label says which is better."""
    rows = [
        {"caption": "a red square", "image0": {"bytes": png("red"), "path": None},
         "image1": {"bytes": png("blue"), "path": None}, "label": label}
        for label in (0, 1, 2)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "quality.parquet")
    drafts, (bad,) = found(tmp_path, "mj_bench")
    for draft, order in zip(drafts, ("red blue", "blue red"), strict=True):
        group = draft.load()
        assert [each.text for each in group.responses] == ["a red square"] * 2 and group.ranked_pairs() == ((0, 1),)
        assert [each.media[0].data[0] for each in group.responses] == [png(colour) for colour in order.split()]
        assert group.media == ()
    assert drafts[0].group.key != drafts[1].group.key and "label is 2" in bad.where


def test_another_benchmarks_rows_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "bench.jsonl", [{"id": "1", "text": "no such thing"}])
    for benchmark in ("rewardbench_2", "mr2bench", "video_rewardbench", "mj_bench"):
        with pytest.raises(DataError, match="no line of the file|cannot read"):
            found(tmp_path, benchmark)
