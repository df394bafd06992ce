"""Ratings and votes: what they say of ranks, scores and reasons, and which of them say nothing."""

from __future__ import annotations

from pathlib import Path

from stand_ins.published_rows import COLUMN, COMPLETIONS, PAIR, ROWS, assistant, groups, user, write
from stand_ins.sample_groups import picture

from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.layouts.read import import_layout


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
