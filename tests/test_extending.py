"""docs/extending.md, word for word: each example is built in a folder of its own and run by the command it shows."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.commands import give
from stand_ins.small_data import picture

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
QUIET = ["logger=none", "callbacks=none", "trainer=cpu", "hydra.run.dir=run"]
MOST_LINES = 15  # of YAML beside the thing itself


def blocks(language: str) -> dict[str, str]:
    """The page's code, by the file name in the comment that each block begins with."""
    found = re.findall(rf"```{language}\n((?:# @package _global_\n)?# (\S+)\n.*?)```", PAGE.read_text(), re.DOTALL)
    return {name: code for code, name in found}


def command(word: str) -> list[str]:
    """The page's command that has a word in it, without the program's name."""
    (line,) = [line for line in re.findall(r"^mmrlhf .*$", PAGE.read_text(), re.MULTILINE) if word in line]
    return shlex.split(line)[1:]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all files of the page, from which the command is given."""
    for name, code in {**blocks("python"), **blocks("yaml")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(here: Path, words: list[str], stage: str, *more: str, **places: Path) -> dict[str, Any]:
    """Run a command of the page, with real folders in place of DIR and FOLDER; returns what a stage found."""
    given = [word for word in words if not word.endswith(("=DIR", "=FOLDER"))]
    given += [f"{key.replace('__', '.')}={place}" for key, place in places.items()]
    assert give(*given, *QUIET, *more) == 0
    return json.loads((here / "run" / "metrics.json").read_text())[stage]


def write_table(folder: Path, rows: list[Mapping[str, Any]]) -> Path:
    """A jsonl file of rows with one picture beside it."""
    import numpy as np

    folder.mkdir()
    (folder / "a.png").write_bytes(picture(np.random.default_rng(0), 40, 40))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_each_is_one_file_and_a_short_yaml() -> None:
    assert len(blocks("python")) == len(blocks("yaml")) == 5
    for name, code in blocks("yaml").items():
        assert len(code.strip().splitlines()) <= MOST_LINES, name


def test_the_loss_is_what_its_paper_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPPO, arXiv 2405.00675, with hard labels: (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2, r the log-ratio."""
    import my_losses  # type: ignore[import-not-found]

    from mmrlhf.losses.objective import PairInputs

    policy, reference = torch.randn(2, 9), torch.randn(2, 9)
    terms = my_losses.SPPO(beta=0.3)(PairInputs(policy[0], policy[1], reference[0], reference[1]))
    chosen, rejected = policy - reference
    torch.testing.assert_close(terms.loss, (chosen - 0.5 / 0.3) ** 2 + (rejected + 0.5 / 0.3) ** 2)


@pytest.mark.slow  # trains
def test_a_loss_trains(here: Path) -> None:
    found = run(here, command("sppo"), "mmdpo", "scale=tiny", "stage=mmdpo")
    assert found["objective"] == "SPPO" and found["steps"] == 2


@pytest.mark.slow  # trains
def test_a_family_trains(here: Path) -> None:
    words = [word for word in command("model=llava") if not word.startswith("inputs")]
    found = run(here, words, "mmdpo", "stage=mmdpo")
    assert found["steps"] == 2
    tiny = json.loads((here / "run" / "metrics.json").read_text())["tiny"]
    assert tiny["family"] == "llava"


def test_a_layout_packs_and_names_what_it_cannot_read(here: Path) -> None:
    answers = [{"response": "yes", "rating": 4, "model": "m"}, {"response": "no", "rating": 2, "model": "n"}]
    good = {"id": "1", "picture": "a.png", "question": "is it ?", "completions": answers}
    table = write_table(here / "table", [good, {"id": "2", "picture": "a.png", "question": "and ?"}])
    found = run(here, command("data=ratings"), "pack", data__root=table)
    assert (found["groups"], found["responses"], found["rejected"]) == (1, 2, 1)
    (reason,) = found["rejected_by_reason"]
    assert "my_ratings.convert cannot read this row" in reason


def test_a_stage_is_built(here: Path) -> None:
    found = run(here, command("experiment=words"), "words", "scale=tiny", "stage=words")
    assert found["responses"] > 48 and found["words_per_response"] > 1


@pytest.mark.slow  # the whole chain
def test_a_stage_is_seen_in_the_report(here: Path) -> None:
    run(here, command("experiment=words"), "words", "scale=tiny")
    page = (here / "run" / "artifacts" / "report" / "report.html").read_text()
    assert "words_per_response" in page and "→ words" in page


def test_a_benchmark_is_measured(here: Path) -> None:
    row = {"picture": "a.png", "question": "what ?", "a": "a long answer here", "b": "short", "winner": "a"}
    table = write_table(here / "table", [{**row, "id": str(i), "topic": "colours"} for i in range(3)])
    words = command("benchmark=duels")
    baselines = ["stages.rewardbench.reward_model=null"]  # what needs no model
    found = run(here, words, "rewardbench", *baselines, benchmark__root=table)
    assert found["accuracy"]["annotators"]["longer wins"]["acc"]["mean"] == 1.0
    assert (here / "run" / "artifacts" / "rewardbench" / "rewardbench.md").read_text().count("colours") == 1
