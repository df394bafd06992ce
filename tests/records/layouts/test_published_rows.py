"""Every layout, in the fields that it was published with: known by them, read whole, and refused by field."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import picture, write_pictures

from mmrlhf.composition.config import CONF
from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.layouts.known_layouts import LAYOUTS, known_by
from mmrlhf.records.layouts.read import import_layout
from mmrlhf.records.ranked_record import parse_ranked
from mmrlhf.types import PreferenceGroup

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
anything = st.recursive(
    scalars, lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text(max_size=3), one, max_size=2)
)
COLUMN = {"bytes": picture(), "path": "0.jpg"}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rated(*ratings: str) -> dict[str, Any]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    return {a: {"Rating": r, "Rationale": f"{a} {r}"} for a, r in zip(aspects, ratings, strict=True)}


COMPLETIONS = [
    {"annotations": rated("5", "5", "5"), "model": "m1", "response": "good"},
    {"annotations": rated("4", "5", "3"), "model": "m2", "response": "bad"},
    {"annotations": rated("5", "4", "3"), "model": "m3", "response": "as bad"},
    {"annotations": rated("N/A", "5", "5"), "model": "m4", "response": "unrated"},
]
PAIR = {"chosen": "good", "rejected": "bad"}
JUDGED = {
    "brackets": (
        "Look.\nQuestion: [what?]\nThe first response: [bad]\nThe second response: [good]\nASSISTANT:\n",
        "The second is right. The better response: [second]",
    ),
    "numbers": ("Question: [what?]\nResponse 1: [good]\nResponse 2: [bad]\n", "Fine.\nThe better response: [1]"),
    "arena": (
        "<|User Prompt|>\nwhat?\n\n"
        "<|The Start of Assistant A's Answer|>\nbad\n<|The End of Assistant A's Answer|>\n\n"
        "<|The Start of Assistant B's Answer|>\ngood\n<|The End of Assistant B's Answer|>",
        "My verdict: [[B>>A]]",
    ),
    "scores": (
        "[Question]\nwhat?\n\n[Assistant 1]\ngood\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nbad\n\n[End of Assistant 2]\n",
        "8 6.5\nThe first sees more.",
    ),
}

# name of the layout -> a row as it was published; each asks "what?" about one picture, and says that "good" beats "bad"
ROWS: dict[str, dict[str, Any]] = {
    "vlfeedback": {
        "id": "svit-0",
        "prompt": "what?",
        "models": ["m1", "m2", "m3", "m4"],
        "completions": COMPLETIONS,
        "image": COLUMN,
    },
    "align_anything": {
        "question": "what?",
        "response_1": "bad",
        "response_2": "good",
        "image": COLUMN,
        "overall_response": 2,
        "overall_textual_feedback": "the second sees it",
        "prompt_source": "x",
        "image_source": "y",
    },
    "wildvision": {
        "question_id": "q0",
        "model_a": "m1",
        "model_b": "m2",
        "conversation_a": [user("what?"), assistant("bad")],
        "conversation_b": [user("what?"), assistant("good")],
        "language": "English",
        "image": COLUMN,
        "turn": 1,
        "anony": True,
        "winner": "model_b",
        "tstamp": 1.5,
        "judge": "arena_user",
    },
    "llava_rlhf": {
        "id": "0",
        "image": "0.jpg",
        "conversations": [human("<image>\nwhat?")],
        "output_1": {"from": "llava", "value": "bad"},
        "output_2": {"from": "llava", "value": "good"},
        "preference": 2,
        "hallucination": False,
    },
    "rlhf_v": {
        "ds_name": "RLHF-V",
        "image": COLUMN,
        "text": json.dumps({"question": "what?", **PAIR}),
        "origin_dataset": "COCO",
        "origin_split": "{}",
        "idx": 7,
        "image_path": "x/0.jpg",
    },
    "llava_critic": {
        "id": "c",
        "source": "vlfeedback",
        "image": COLUMN,
        "conversations": [human("<image>\n" + JUDGED["brackets"][0]), gpt(JUDGED["brackets"][1])],
    },
    "vl_rewardbench": {
        "id": "RLAIF-V-1",
        "query": "what?",
        "response": ["bad", "good"],
        "image": COLUMN,
        "human_ranking": [1, 0],
        "models": ["m1", "m2"],
        "judge": "human",
        "rationale": None,
        "query_source": "COCO",
        "meta": "{}",
        "human_error_analysis": ["x"],
        "ground_truth": None,
    },
    "multimodal_rewardbench": {
        "ID": "nocaps_1",
        "Text": "what?",
        "Image": "0.jpg",
        "Output1": "bad",
        "Output2": "good",
        "Better": "Output2",
        "Category": "vqa",
    },
    "povid": {
        "id": "0",
        "image": "0.jpg",
        "conversations": [human("<image>\nwhat?"), gpt("good")],
        "rejected_conversations": [human("<image>\nwhat?"), gpt("bad")],
    },
    "llava_hound": {
        "id": "v0",
        "video": "v0",
        "prompt": "<video>\nwhat?",
        "answer": "reference",
        **PAIR,
        "chosen_score": 5,
        "rejected_score": 2,
    },
    "rlaif_v": {
        "ds_name": "RLAIF-V",
        "image": COLUMN,
        "question": "what?",
        **PAIR,
        "origin_dataset": "COCO",
        "origin_split": "{}",
        "idx": "0",
        "image_path": "x/0.jpg",
    },
    "spa_vl": {"image": COLUMN, "question": "what?", **PAIR, "image_name": "0.jpg"},
    "internlm_xcomposer": {
        "id": 0,
        "conversations_a": [human("what?"), {"from": "bot", "value": "good"}],
        "conversations_b": [human("what?"), {"from": "bot", "value": "bad"}],
        "image": "./0.jpg",
        "turn": 1,
        "language": "English",
        "model_a": "m1",
        "model_b": "m2",
    },
    "llava_pairs": {
        "id": "a",
        "image": "0.jpg",
        "conversations_a": [human("<image>\nwhat?"), gpt("bad")],
        "conversations_b": [human("<image>\nwhat?"), gpt("good")],
        "preference": "b",
    },
    "ms_swift": {
        "messages": [user("<image>what?"), assistant("good")],
        "images": ["0.jpg"],
        "rejected_response": "bad",
    },
    "internvl": {"image": "0.jpg", "question": "<image>\nwhat?", **PAIR},
    "llama_factory": {
        "conversations": [human("<image>what?")],
        "chosen": gpt("good"),
        "rejected": gpt("bad"),
        "images": [COLUMN],
    },
    "preference_rows": {
        "images": [COLUMN],
        "prompt": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "good"}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "bad"}]}],
    },
    "mm_rlhf": {
        "id": "a",
        "image": "0.jpg",
        "prompt": "what?",
        "responses": [{"text": "good", "rank": 1}, {"text": "bad", "rank": 2}],
    },
}
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


def write(root: Path, *rows: dict[str, Any]) -> Path:
    """Rows with a picture inside as Parquet, others as JSON lines beside their picture."""
    (root / "v0").mkdir(parents=True)
    for place in ("0.jpg", "v0/0.jpeg", "v0/1.jpeg"):
        (root / place).write_bytes(picture())
    if b"bytes" in repr(rows).encode():
        pq.write_table(pa.Table.from_pylist(list(rows)), root / "train-00000-of-00001.parquet")
    else:
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def groups(root: Path, **options: Any) -> list[PreferenceGroup]:
    return [item.load() for item in import_layout(root, **options) if isinstance(item, Draft)]


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


def test_four_rated_answers_have_ranks_scores_reasons_and_a_critique(tmp_path: Path) -> None:
    """The mean of the ratings ranks (Silkie); 4+5+3 and 5+4+3 tie; a missing rating leaves the rank open.

    jsonl has a list of answers, Parquet the lists of their parts.
    """
    row = {name: value for name, value in ROWS["vlfeedback"].items() if name != "image"}
    lists = {name: [item[name] for item in COMPLETIONS] for name in ("annotations", "model", "response")}
    write(tmp_path / "jsonl", {**row, "img_path": "0.jpg"})
    write(tmp_path / "parquet", {**row, "completions": lists, "image": COLUMN})
    for folder in ("jsonl", "parquet"):
        [group] = groups(tmp_path / folder)
        assert [response.rank for response in group.responses] == [1, 2, 2, None]
        first, last = group.responses[0], group.responses[3]
        assert first.scores == {"helpfulness": 5, "ethics": 5, "faithfulness": 5} and first.model == "m1"
        assert first.reasons["faithfulness"] == "Visual Faithfulness 5"
        assert first.critiques["short"].startswith("Helpfulness: Helpfulness 5\n")
        assert last.scores == {"ethics": 5, "faithfulness": 5}
        assert len(group.ranked_pairs()) == 2 and group.media[0].data[0] == picture()


@pytest.mark.parametrize(
    ("path", "options"), [("0.jpg", {}), ("merged_images/0.jpg", {}), ("v0/1.jpeg", {"media_folder": "."})]
)
def test_pictures_lie_in_the_folder_that_a_layout_is_published_with(
    path: str, options: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the rows name it themselves, or another folder is set."""
    row = {name: value for name, value in ROWS["vlfeedback"].items() if name != "image"}
    root = write(tmp_path / "set", {**row, "img_path": path})
    write_pictures(root, *["unused.jpg"] * 3, "merged_images/0.jpg")
    with caplog.at_level(logging.INFO):
        [group] = groups(root, **options)
    assert group.media[0].data[0] == (picture() if options else picture(shade=3))
    assert ("as this layout is published" in caplog.text) == (path == "0.jpg")


@pytest.mark.parametrize("form", JUDGED)
def test_a_judge_is_asked_in_several_ways(form: str, tmp_path: Path) -> None:
    asked, said = JUDGED[form]
    write(tmp_path / "set", {**ROWS["llava_critic"], "conversations": [human("<image>\n" + asked), gpt(said)]})
    [group] = groups(tmp_path / "set")
    assert {response.text: response.rank for response in group.responses} == {"good": 1, "bad": 2}
    assert group.prompt.question == "what?" and group.category == "vlfeedback" and group.meta["judgement"] == said


@pytest.mark.parametrize("said", ["Both are equally good.", "[[A=B]]", "7 7\n"])
def test_a_judge_may_call_it_a_tie(said: str, tmp_path: Path) -> None:
    form = {"B": "brackets", "[": "arena", "7": "scores"}[said[0]]
    row = {**ROWS["llava_critic"], "conversations": [human("<image>\n" + JUDGED[form][0]), gpt(said)]}
    [group] = groups(write(tmp_path / "set", row))
    assert [response.rank for response in group.responses] == [1, 1]


def test_votes_may_be_ties_and_battles_of_several_turns_have_no_common_prompt(tmp_path: Path) -> None:
    row = ROWS["wildvision"]
    longer = {f"conversation_{side}": [user("hi"), assistant(side), *row[f"conversation_{side}"]] for side in "ab"}
    rows = [row | {"winner": "tie (bothbad)"}, {**row, **longer, "question_id": "q1"}]
    tie, apart = import_layout(write(tmp_path / "set", *rows), on_bad_line="reject")
    [tie, apart] = [apart, tie] if isinstance(tie, Rejection) else [tie, apart]
    assert isinstance(tie, Draft) and [response.rank for response in tie.group.responses] == [1, 1]
    assert isinstance(apart, Rejection) and apart.reason == "the two answers belong to different prompts"


def test_the_copy_of_vl_rewardbench_in_another_repository(tmp_path: Path) -> None:
    """r1_reward keeps it as pairs, with empty reasons."""
    row = {"id": "mathverse_1", "prompt": "what?", **PAIR, "image": "0.jpg", "chosen_reason": "", "rejected_reason": ""}
    [group] = groups(write(tmp_path / "set", row), layout="vl_rewardbench")
    assert group.category == "reasoning" and [response.text for response in group.responses] == ["good", "bad"]


def test_several_pictures_stand_where_placeholders_say(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in "ab":
        (tmp_path / "set" / f"{name}.jpg").write_bytes(picture(shade=ord(name)))
    turns = [human("Image1 <ImageHere>; Image2 <ImageHere>; which?"), {"from": "bot", "value": "good"}]
    worse = [turns[0], {"from": "bot", "value": "bad"}]
    row = {"id": 1, "conversations_a": turns, "conversations_b": worse, "image": ["b.jpg", "a.jpg"]}
    (tmp_path / "set" / "rows.json").write_text(json.dumps([row]))
    [group] = groups(tmp_path / "set")
    parts = ("Image1 ", IMAGE, "; Image2 ", IMAGE, "; which?")
    assert group.prompt == Conversation((Turn("user", parts),))
    assert [media.data[0] for media in group.media] == [picture(shade=ord(name)) for name in "ba"]


def test_pictures_of_the_rejected_answer_are_its_own(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {**ROWS["ms_swift"], "rejected_response": None, "rejected_images": ["v0/0.jpeg"]})
    (root / "v0" / "0.jpeg").write_bytes(picture(shade=99))
    [group] = groups(root)
    assert not group.media and [response.text for response in group.responses] == ["good", "good"]
    assert [response.media[0].data[0] for response in group.responses] == [picture(), picture(shade=99)]


def test_what_no_layout_has_is_an_error_that_says_what_could_be_done(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no layout is known") as caught:
        import_layout(write(tmp_path / "set", {"instruction": "q", "output": "a"}))
    assert "instruction" in str(caught.value.given) and "data=converted" in str(caught.value.fix)
    with pytest.raises(DataError, match="no layout is known") as caught:
        import_layout(write(tmp_path / "wrapped", {"data": [PAIR]}))
    assert "'data'" in str(caught.value.given)
    with pytest.raises(ConfigError, match="no layout of this name"):
        import_layout(tmp_path / "set", layout="vl_feedback")


def test_the_wrong_layout_suggests_the_one_that_fits(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ROWS["vlfeedback"])
    with pytest.raises(DataError, match=r"no line of the file(?s:.)*data=vlfeedback"):
        list(import_layout(root, layout="rlaif_v", on_bad_line="reject"))
    with pytest.raises(DataError, match="no line of the file") as caught:
        list(import_layout(write(tmp_path / "bad", {**ROWS["internvl"], "image": ""}), on_bad_line="reject"))
    assert "data=" not in str(caught.value.fix), "auto is set, and the layout is right"


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
