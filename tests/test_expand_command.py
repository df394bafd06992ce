"""Expanding reasons as a user does it: ask, let another model answer elsewhere, go on, train on the critiques."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from stand_ins.sample_groups import write_pictures, write_records

from mmrlhf.app import CONF, run_chain
from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index

REASONS = ("correct and complete", "the colour is wrong", "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Queries with reasons on two of three responses."""
    rows = []
    for number in range(8):
        said = [
            {"text": f"answer {rank} to {number}", "rank": rank, "critiques": {"short": reason} if reason else {}}
            for rank, reason in enumerate(REASONS, start=1)
        ]
        rows.append({"id": f"q{number}", "image": "long/a.jpg", "prompt": f"what is {number} ?", "responses": said})
    write_pictures(tmp_path / "data", "long/a.jpg")
    return write_records(tmp_path / "data", "data.jsonl", rows)


def command(tmp_path: Path, *overrides: str) -> list[Any]:
    """Run a command in this process."""
    usual = ["experiment=reward_llava", "scale=tiny", "logger=none", "trainer=cpu", "runtime.progress=false"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"data.root={tmp_path / 'data'}", f"paths.artifacts={tmp_path / 'artifacts'}"]
        return run_chain(hydra.compose("config", [*usual, *words, *overrides]), tmp_path / "run", shows=False)


def test_recorded_answers_become_critiques_that_are_trained_on(tmp_path: Path, root: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    recorded = ["expander=recorded", f"expander.path={answers}"]
    with pytest.raises(DataError, match=r"no recorded expansions yet(?s:.)*requests\.jsonl"):
        command(tmp_path, "stage=expand", *recorded)
    (requests,) = (tmp_path / "artifacts" / "expand").glob("*/requests.jsonl")
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    assert len(asked) == 16
    texts = {reason: f"The annotator says that the answer is judged like this: {reason}." for reason in REASONS}
    lines = [{"digest": row["digest"], "text": next(texts[r] for r in REASONS if r in row["prompt"])} for row in asked]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))

    trained = ["inputs.shards=stage:expand/shards", "data.critique=full", "stages.reward.critique.missing=score"]
    artifacts = {each.stage: each for each in command(tmp_path, "stage=reward", *trained, *recorded)}
    assert artifacts["expand"].summary["used"] == 16 and artifacts["expand"].summary["responses_without_a_reason"] == 8
    assert artifacts["reward"].summary["critique"] == "full"
    index = Index.load(artifacts["expand"].folder / "shards")
    said = {response.critiques.get("full", "") for row in range(len(index)) for response in index.read(row).responses}
    assert said == {texts[REASONS[0]], texts[REASONS[1]], ""}
