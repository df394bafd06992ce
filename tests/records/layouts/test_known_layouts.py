"""Every layout: known by the fields it was published with, read whole, refused by field, and listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.published_rows import COLUMN, ROWS, gpt, groups, human, write
from stand_ins.sample_groups import picture

from mmrlhf.composition.config import CONF
from mmrlhf.errors import DataError
from mmrlhf.records.draft import Rejection
from mmrlhf.records.layouts.known_layouts import LAYOUTS, known_by
from mmrlhf.records.layouts.read import import_layout
from mmrlhf.records.ranked_record import parse_ranked

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
anything = st.recursive(
    scalars, lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text(max_size=3), one, max_size=2)
)
# what a row of each is refused for, and the field that is named
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "vlfeedback": ({"completions": [{"annotations": 3}]}, r"completions\[0\]:annotations"),
    "align_anything": ({"overall_response": 3}, "overall_response"),
    "wildvision": ({"winner": "nobody"}, "winner"),
    "llava_rlhf": ({"preference": 0}, "preference"),
    "rlhf_v": ({"text": "{not json"}, "text"),
    "llava_critic": ({"conversations": [human("Rate it."), gpt("Final Score: 80")]}, "no two answers are compared"),
    "vl_rewardbench": ({"human_ranking": [1, 1]}, "human_ranking"),
    "multimodal_rewardbench": ({"Better": "neither"}, "Better"),
    "povid": ({"rejected_conversations": [human("<image>\nwho?"), gpt("bad")]}, "different prompts"),
    "llava_hound": ({"audio": "x.wav"}, "audio"),
    "rlaif_v": ({"question": 3}, "question"),
    "spa_vl": ({"chosen": 3}, "chosen"),
    "internlm_xcomposer": ({"conversations_b": [human("what?")]}, "conversations_b"),
    "llava_pairs": ({"preference": "c"}, "preference"),
    "ms_swift": ({"tools": [{"name": "x"}]}, "tools"),
    "internvl": ({"clip": [0, 3]}, "clip"),
    "llama_factory": ({"chosen": human("good")}, "does not end with an answer"),
    "preference_rows": ({"images": [COLUMN, COLUMN]}, "different numbers of media"),
    "mm_rlhf": ({"responses": [{"rank": 1}]}, r"responses\[0\]"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_is_known_and_read_whole(name: str, tmp_path: Path) -> None:
    assert next(known_by(ROWS[name])) == name
    write(tmp_path / "set", ROWS[name])
    [group], [same] = groups(tmp_path / "set"), groups(tmp_path / "set", layout=name)
    assert group == same
    assert group.prompt.question == "what?" and len(group.media) == 1 and group.media[0].data[0] == picture()
    ranks = {response.text: response.rank for response in group.responses}
    assert ranks["good"] == 1 and ranks["bad"] == 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_that_does_not_fit_is_refused_by_field(name: str, tmp_path: Path) -> None:
    fields, words = WRONG[name]
    if name == "preference_rows":
        root = write(tmp_path / "set", ROWS[name], {**ROWS[name], **fields})
    else:
        media = {"video": "v0"} if name == "llava_hound" else {"image": "0.jpg"}
        row = {field: value for field, value in ROWS[name].items() if field not in ("images", "image")} | media
        root = write(tmp_path / "set", row, {**row, **fields})
    with pytest.raises(DataError, match=words) as caught:
        list(import_layout(root, layout=name))
    assert ":2" in str(caught.value.where)
    found = list(import_layout(root, layout=name, on_bad_line="reject"))
    rejections = [item for item in found if isinstance(item, Rejection)]
    assert len(rejections) == 1 and ":2" in rejections[0].where and len(found) == 2


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """One field, or a part of it, is something else."""
    row = json.loads(json.dumps(ROWS[name], default=lambda value: "x"))
    field = data.draw(st.sampled_from(sorted(row)))
    value, other = row[field], data.draw(anything)
    if isinstance(value, list) and value and data.draw(st.booleans()):
        value[data.draw(st.integers(0, len(value) - 1))] = other
    elif isinstance(value, dict) and data.draw(st.booleans()):
        value[data.draw(st.sampled_from(sorted(value)))] = other
    else:
        row[field] = other
    try:
        next(known_by(row), None)
        assert parse_ranked(LAYOUTS[name].convert(row, "f:1"), "f:1").responses
    except DataError as error:
        assert str(error.where).startswith("f:1")


@pytest.mark.parametrize("name", [*LAYOUTS, "mmpr", "auto"])
def test_each_has_a_config_that_names_its_source(name: str) -> None:
    """`data=NAME`: what is published on the hub says its repository and licence there, and in the table."""
    config = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    layout = LAYOUTS.get(name)
    if layout is None or name == "mm_rlhf":
        return
    assert config["importer"].get("layout", name) == name
    assert config.get("repo_id", layout.repo_id) == layout.repo_id
    if layout.licence and not layout.licence.startswith("see"):
        assert config["importer"]["licence"] == layout.licence


def test_the_page_lists_every_layout(project: Path) -> None:
    page = (project / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, layout in LAYOUTS.items():
        assert name in rows, name
        assert not layout.repo_id or layout.repo_id in rows[name], name
        assert not layout.licence or layout.licence in rows[name] or layout.licence.startswith("see"), name
        assert not layout.size or layout.size in rows[name], name
