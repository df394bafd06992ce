"""VL-RewardBench and Multimodal RewardBench in the layouts that they are published in."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stand_ins.sample_groups import picture

from mmrlhf.errors import DataError
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.layouts.read import import_layout


def vl_row(record_id: str, ranking: list[int], **fields: Any) -> dict[str, Any]:
    """A row as the repository writes it."""
    return {
        "id": record_id, "query": "What is it?", "response": ["a dog", "a cat"], "human_ranking": ranking,
        "models": ["A", "B"], "judge": "human", "rationale": None, "query_source": "COCO", "meta": {"note": "x"},
        "human_error_analysis": ["recognition(object)"], **fields,
    }  # fmt: skip


import_vl_rewardbench = partial(import_layout, layout="vl_rewardbench")
import_multimodal_rewardbench = partial(import_layout, layout="multimodal_rewardbench", file="all_data.json")


def groups(items) -> list[Draft]:
    return [item for item in items if isinstance(item, Draft)]


def texts(draft: Draft) -> list[tuple[str, int | None]]:
    return [(response.text, response.rank) for response in draft.group.responses]


def test_the_repositorys_json_lines(tmp_path: Path) -> None:
    """[1, 0] prefers the second response; the folder of the image says the category."""
    (tmp_path / "images" / "povid").mkdir(parents=True)
    (tmp_path / "images" / "povid" / "one.jpg").write_bytes(picture())
    rows = [
        vl_row("RLAIF-V-1", [1, 0], image_path="images/povid/one.jpg"),
        vl_row("x-2", [0, 1], image_path="images/reasoning_tasks/one.jpg"),
        vl_row("LRVInstruction-3", [0, 1], image_path="images/vlfeedback/one.jpg"),
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = groups(import_vl_rewardbench(tmp_path))
    assert [draft.group.category for draft in found] == ["hallucination", "reasoning", "general"]
    assert sorted(texts(found[0]), key=lambda item: item[1] or 0) == [("a cat", 1), ("a dog", 2)]
    assert sorted(texts(found[1]), key=lambda item: item[1] or 0) == [("a dog", 1), ("a cat", 2)]
    assert found[0].load().media[0].data == (picture(),)
    about = ("query_source", "human_error_analysis", "rationale", "judge")
    assert found[0].notes.keys() == {f"ignored field: {name}" for name in about}
    assert [response.model for response in found[0].group.responses] == ["B", "A"]


def test_the_hubs_table_with_pictures_inside(tmp_path: Path) -> None:
    """Without folders the ids say the category; pictures are read again when they are packed."""
    ids = ["RLAIF-V-1", "RLHF-V-2", "hallucination_pair-3", "mathverse_4", "mmmu_pro_5", "wildvision-6", "VQA-7"]
    rows = [vl_row(name, [0, 1], image={"bytes": picture(shade=n), "path": None}) for n, name in enumerate(ids)]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "test-00000-of-00001.parquet")
    found = groups(import_vl_rewardbench(tmp_path))
    wanted = ["hallucination"] * 3 + ["reasoning"] * 2 + ["general"] * 2
    assert [draft.group.category for draft in found] == wanted
    assert [draft.load().media[0].data[0] for draft in found] == [picture(shade=n) for n in range(7)]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [({"human_ranking": [1, 1]}, "human_ranking"), ({"response": ["a"]}, "response"), ({"query": None}, "question")],
)
def test_a_row_that_does_not_say_which_is_better(tmp_path: Path, fields: dict, problem: str) -> None:
    rows = [vl_row("a-1", [0, 1]), {**vl_row("a-2", [0, 1]), **fields}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=problem):
        list(import_vl_rewardbench(tmp_path))
    kept = list(import_vl_rewardbench(tmp_path, on_bad_line="reject"))
    assert {type(item) for item in kept} == {Draft, Rejection}


def multimodal_row(record_id: str, better: str, category: str) -> dict[str, Any]:
    return {
        "ID": record_id, "Text": "Which one?", "Image": "images/nocaps/1.jpg", "Output1": "one", "Output2": "two",
        "Better": better, "Category": category,
    }  # fmt: skip


def test_multimodal_rewardbench(tmp_path: Path) -> None:
    """Safety and reasoning come in the halves of the benchmark's own scoring script."""
    rows = [
        multimodal_row("nocaps_1", "Output2", "open_generation/correctness_task"),
        multimodal_row("PAIRS_2", "Output1", "safety"),
        multimodal_row("hateful_3", "Output1", "safety"),
        multimodal_row("mathvista_4", "Output1", "reasoning"),
        multimodal_row("EMMA_5", "Output1", "reasoning"),
    ]
    (tmp_path / "images" / "nocaps").mkdir(parents=True)
    (tmp_path / "images" / "nocaps" / "1.jpg").write_bytes(picture())
    (tmp_path / "all_data.json").write_text(json.dumps(rows))
    found = groups(import_multimodal_rewardbench(tmp_path))
    assert [draft.group.category for draft in found] == [
        "open_generation/correctness_task", "safety/bias", "safety/toxicity", "reasoning/math", "reasoning/coding",
    ]  # fmt: skip
    assert dict(texts(found[0])) == {"two": 1, "one": 2} and dict(texts(found[1])) == {"one": 1, "two": 2}
    assert found[0].load().media[0].data == (picture(),)
    (tmp_path / "all_data.json").write_text(json.dumps([multimodal_row("a", "neither", "vqa")]))
    with pytest.raises(DataError, match="Better"):
        list(import_multimodal_rewardbench(tmp_path))


def test_a_wrong_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all_data\.json"):
        import_multimodal_rewardbench(tmp_path)
    with pytest.raises(DataError, match="parquet"):
        import_vl_rewardbench(tmp_path)
