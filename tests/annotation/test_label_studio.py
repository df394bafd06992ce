"""Label Studio's projects and exports: the page that is written, and everything that an export can hold."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stand_ins.annotators import annotation, exported_tasks, filled, ranking, rating, texts, unranked
from stand_ins.sample_groups import picture

from mmrlhf.annotation.filled_forms import Form
from mmrlhf.annotation.label_studio_export import label_studio_forms
from mmrlhf.annotation.label_studio_project import OWN_MEDIA, write_projects
from mmrlhf.errors import DataError
from mmrlhf.media.video import decode_video
from mmrlhf.shapes.draw import encode_video
from mmrlhf.types import Media, PreferenceGroup, Response


def read(tasks: object) -> tuple[list[Form], dict[str, str]]:
    refused: dict[str, str] = {}
    forms = list(label_studio_forms(tasks, "export.json", lambda where, reason: refused.update({where: reason})))
    return forms, refused


def place_of(task: Mapping[str, Any], number: int) -> int:
    """The response that was shown as answer `number`."""
    return task["data"]["order"][number]


def in_order(task: Mapping[str, Any], shown: list[Any]) -> tuple[Any, ...]:
    """Values of shown answers in the order of the responses."""
    return tuple(shown[task["data"]["order"].index(place)] for place in range(len(shown)))


def test_a_page_for_every_medium_and_number_of_answers(tmp_path: Path) -> None:
    import numpy as np

    clip = Media("video", ("mp4",), (encode_video(np.zeros((4, 33, 48, 3), np.uint8)),))
    own = PreferenceGroup(
        "own", "q", (Response("a", media=(Media("image", ("x.0.jpg",), (picture(),)),)), Response("b"))
    )
    groups = [
        unranked("a"),
        unranked("b", 4),
        unranked("c", num_images=0),
        unranked("d", media=(clip,)),
        own,
        unranked("e"),
    ]
    refused: dict[str, str] = {}
    counts = write_projects(tmp_path, groups, refused.__setitem__)
    assert counts == {"1-images-3-answers": 2, "1-images-4-answers": 1, "text-3-answers": 1, "1-clips-3-answers": 1}
    assert refused == {"own": OWN_MEDIA}
    page = ElementTree.parse(tmp_path / "1-images-4-answers" / "config.xml").getroot()
    assert len(page.findall(".//Rating")) == 12 and len(page.findall("Ranker/Bucket")) == 4
    names = [element.get("name") for element in page.iter() if element.get("name")]
    assert len(set(names)) == len(names)
    assert all(element.get("toName") in names for element in page.iter() if element.get("toName"))
    tasks = json.loads((tmp_path / "1-images-3-answers" / "tasks.json").read_text())
    values = {element.get("value", "")[1:] for element in page.iter() if element.get("value", "").startswith("$")}
    assert values - {"response_3"} <= set(tasks[0]["data"])
    shown = tmp_path / "media" / tasks[0]["data"]["media_0"].rpartition("/")[2]
    assert shown.read_bytes() == groups[0].media[0].data[0]
    # MPEG-4 Visual, which browsers do not play, is written anew, with an even height
    (mp4,) = (tmp_path / "media").glob("d.*.mp4")
    assert b"avc1" in mp4.read_bytes() and decode_video(mp4.read_bytes(), num_frames=4, where="x").frames.shape[1] == 34


def test_order_of_answers_is_blind_and_differs_between_queries(tmp_path: Path) -> None:
    tasks = exported_tasks(tmp_path, [unranked(f"q{number}", 4) for number in range(24)])
    orders = {tuple(task["data"]["order"]) for task in tasks}
    assert len(orders) > 10
    firsts = [task["data"]["order"][0] for task in tasks]
    assert all(firsts.count(place) < 15 for place in range(4))
    text = json.dumps(tasks)
    assert '"rank' not in text and '"model"' not in text


def test_scores_reasons_ranks_with_ties_and_a_problem(tmp_path: Path) -> None:
    (task,) = exported_tasks(tmp_path, [unranked("q", 4)])
    task["annotations"] = [
        annotation(
            1, rating("helpfulness", 0, 4), rating("ethics", 3, 1), rating("faithfulness", 1, 0),
            texts("helpfulness_reason_2", "response_2", "too long", "too long", " and vague "),
            ranking({"rank_1": ["B"], "rank_2": ["A", "D"], "_": ["C"], "rank_3": []}),
            texts("problem_text", "prompt", "blurred"), by={"id": 3, "email": "ann@example.org"},
        ),
        annotation(2, rating("ethics", 0, 5), by=7, ground_truth=True),
    ]  # fmt: skip
    (first, second), refused = read([task])
    assert not refused and first.annotator == "ann@example.org" and second.annotator == "user 7"
    assert first.kind == "person" and second.kind == "expert"
    assert first.ranks == in_order(task, [2, 1, None, 2]) and second.ranks == (None,) * 4
    assert first.scores["helpfulness"][place_of(task, 0)] == 4 and first.scores["ethics"][place_of(task, 3)] == 1
    assert set(first.scores["faithfulness"]) == {None}, "stars that were taken back are no score"
    assert first.reasons["helpfulness"][place_of(task, 2)] == "too long\nand vague"
    assert first.problem == "blurred" and first.seconds == 61.5 and first.at == 1793527260.0
    assert "task 1, annotation 1" in first.origin


def test_rankings_without_buckets_gaps_and_unknown_ones(tmp_path: Path) -> None:
    (task,) = exported_tasks(tmp_path, [unranked("q")])
    forms = [["C", "A", "B"], {"rank": ["C", "A", "B"]}, {"rank_1": ["C"], "rank_3": ["A"], "rank_7": ["B"]}]
    task["annotations"] = [annotation(number, ranking(value)) for number, value in enumerate(forms, start=1)]
    found, refused = read([task])
    assert [form.ranks for form in found] == [
        in_order(task, [2, 3, 1]),
        in_order(task, [2, 3, 1]),
        in_order(task, [3, 7, 1]),
    ]
    task["annotations"] = [
        annotation(1, ranking({"best": ["A"], "worst": ["B"]})), annotation(2, ranking({"rank_1": ["Z"]})),
        annotation(3, rating("helpfulness", 9, 2)), annotation(4, rating("helpfulness", 0, 9)),
        annotation(5, {"from_name": "label", "type": "choices", "value": {"choices": ["x"]}}),
        annotation(6, {"type": "rating"}), annotation(7, texts("ethics_reason_0", "response_0", 3)),
    ]  # fmt: skip
    found, refused = read([task])
    assert not found and len(refused) == 7
    assert all(reason.startswith("not a result of this page (") for reason in refused.values())


def test_cancelled_empty_edited_foreign_and_nameless(tmp_path: Path) -> None:
    first, second, third = exported_tasks(tmp_path, [unranked(name) for name in "abc"])
    first["annotations"] = [
        annotation(1, ranking({"rank_1": ["A"]}), was_cancelled=True), annotation(2),
        annotation(3, ranking({"_": ["A"]})),
    ]  # fmt: skip
    first["predictions"] = [
        {"id": 1, "model_version": "rm-1", "result": [ranking({"rank_1": ["A"], "rank_2": ["B", "C"]})]},
        {"id": 2, "result": [ranking({"rank_1": ["A"]})]}, {"id": 3, "model_version": " ", "result": []}, 17,
    ]  # fmt: skip
    second["data"]["response_1"] += " (corrected)"
    third["data"]["prompt"] = "another question"
    others = [
        {"id": 9, "data": {"text": "x"}, "annotations": []},
        {"id": 10},
        {"data": {"key": "a", "hashes": ["x"], "order": [3]}},
    ]
    forms, refused = read([first, second, third, *others])
    (proposal,) = forms
    assert proposal.kind == "model" and proposal.annotator == "rm-1" and proposal.ranks == in_order(first, [1, 2, 2])
    reasons = sorted(refused.values())
    assert reasons == sorted(
        ["skipped by the annotator", *["an empty form"] * 2, *["a proposal without its model (model_version)"] * 2,
         *["the task was edited: its texts are not those that were exported"] * 2, *["a task of another project"] * 3]
    )  # fmt: skip


@pytest.mark.parametrize("tasks", [{"a": 1}, [], [1], [{"id": 1, "data": {"text": "x"}, "annotations": []}]])
def test_an_export_of_another_project(tasks: object) -> None:
    with pytest.raises(DataError, match=r"not Label Studio's JSON export|an export of another project"):
        read(tasks)


def test_the_proposal_that_was_before_an_annotator(tmp_path: Path) -> None:
    """As the server exports it: numbers under `predictions`, and the whole one beside each annotation that saw it."""
    (task,) = exported_tasks(tmp_path, [unranked("q")])
    proposal = {"id": 5, "model_version": "rm-1", "result": [ranking({"rank_1": ["A"], "rank_2": ["B", "C"]})]}
    said = ranking({"rank_1": ["A", "B", "C"]})
    task["predictions"] = [5]
    task["annotations"] = [annotation(1, said, prediction=proposal), annotation(2, said, by=2, prediction=proposal)]
    task["annotations"].append(annotation(3, said, by=3, prediction={}))
    (first, second, third, model), refused = read([task])
    assert not refused and model.kind == "model" and model.ranks == in_order(task, [1, 2, 2])
    assert "with the proposal of rm-1 before it" in first.origin and "proposal" not in third.origin


def test_a_proposal_is_written_as_it_is_read_back(tmp_path: Path) -> None:
    group = unranked("q", 4)
    form = filled(group, "rm-1", (2, 1, None, 2), kind="model", tool="rewards")
    (name,) = write_projects(tmp_path, [group], lambda *_: None, {"q": form})
    tasks = json.loads((tmp_path / name / "tasks.json").read_text())
    (found,), refused = read(tasks)
    assert not refused and (found.ranks, dict(found.scores), found.annotator) == (form.ranks, form.scores, "rm-1")


def test_times_that_no_table_holds_and_proposals_without_numbers(tmp_path: Path) -> None:
    """The one is no time; the other are told apart by their places."""
    (task,) = exported_tasks(tmp_path, [unranked("q")])
    task["annotations"] = [annotation(1, ranking({"rank_1": ["A"]}), lead_time=10**400)]
    task["predictions"] = [{"model_version": name, "result": [ranking({"rank_1": ["B"]})]} for name in ("one", "two")]
    found, refused = read([task])
    assert [form.annotator for form in found[1:]] == ["one", "two"] and not refused
    assert found[0].seconds is None and found[0].ranks == in_order(task, [1, None, None])
