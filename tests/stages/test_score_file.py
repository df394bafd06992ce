"""Stage `score_file`: a user's own responses, by file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmrlhf.errors import DataError
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.stages import score_file

CRITIQUES = CritiqueSettings(max_tokens=6)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A picture beside the file, one by its absolute path, and no picture; texts and objects; a repeated response."""
    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    Image.new("RGB", (60, 60), "blue").save(tmp_path / "blue.png")
    rows = [
        {"id": "first", "image": "red.png", "prompt": "what colour ?", "responses": ["red", "blue picture"]},
        {"images": ["red.png", str(tmp_path / "blue.png")], "prompt": "compare", "responses": [{"text": "left red"}]},
        {"id": None, "prompt": "say yes", "responses": ["yes", "no", "yes"]},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_results_are_those_of_the_python_call(tmp_path, file, critic, runtime, capsys):
    asked = {"responses": file, "reward_model": critic, "critiques": CRITIQUES, "runtime": runtime}
    summary = score_file.run(tmp_path / "out", **asked)
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["first", "line-2", "line-3"]
    assert [len(row["responses"]) for row in rows] == [2, 1, 2], "equal responses are one"
    judge = RewardModel.from_pretrained(critic, critiques=CRITIQUES, device="cpu")
    media = [tmp_path / "red.png", [tmp_path / "red.png", tmp_path / "blue.png"], None]
    for row, medium in zip(rows, media, strict=True):
        found = judge.score(medium, row["prompt"], [response["text"] for response in row["responses"]])
        assert [r["critique"] for r in row["responses"]] == [critique for _, critique in found]
        rewards = [r["reward"] for r in row["responses"]]
        assert rewards == pytest.approx([reward for reward, _ in found], abs=1e-4)
        assert rewards[row["best"]] == max(rewards)
    assert summary["queries"] == 3 and summary["responses"] == summary["responses_scored"] == 5
    assert "what colour ?" in capsys.readouterr().out
    again = score_file.run(tmp_path / "out", **asked)
    assert again["responses_scored"] == 0 and again["responses"] == 5
    # rewards behind other critiques are other rewards: those that are there are not given for them
    other = replace(CRITIQUES, max_tokens=2)
    with pytest.raises(DataError, match="max_tokens"):
        score_file.run(tmp_path / "out", **{**asked, "critiques": other})


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"image": "absent.png", "prompt": "?", "responses": ["a"]}', "mine.jsonl:1"),
        ('{"prompt": "?", "responses": []}', "mine.jsonl:1"),
        ('{"responses": ["a"]}', "mine.jsonl:1"),
        ("{", "mine.jsonl:1"),
        ("", "without a line"),
    ],
)
def test_a_bad_line_is_named_before_anything_runs(tmp_path, line, named):
    path = tmp_path / "mine.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=named):
        score_file.check_settings({"responses": str(path)})
