"""A judge's comparison of two answers, however it was asked for and said."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins.little_work import little_work
from stand_ins.published_rows import JUDGED, ROWS, gpt, groups, human, write


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


@pytest.mark.parametrize("form", JUDGED)
def test_long_runs_of_white_space_are_read_once(form: str, tmp_path: Path) -> None:
    asked, said = JUDGED[form]
    blank = "\n" * 6_000
    asked = asked.replace("what?", f"what?{blank}or{blank}who?")
    assert blank in asked
    with little_work():
        row = {**ROWS["llava_critic"], "conversations": [human(asked), gpt(f"The better response:{blank}none. {said}")]}
        if form == "scores":
            row["conversations"][1] = gpt(said)
        [group] = groups(write(tmp_path / "set", row))
        assert {response.text: response.rank for response in group.responses} == {"good": 1, "bad": 2}
        assert group.prompt.question == f"what?{blank}or{blank}who?"
