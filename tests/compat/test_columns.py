"""The columns of `make compat`: what is asked of pip, what is read off pytest, and that an environment goes again."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from compat.columns import PROJECT, Column, Found, columns, installed, run_column, run_tests, table


def test_columns_are_the_ends_of_the_ranges() -> None:
    wanted = {
        each.name: each.wanted
        for each in columns(
            ["transformers>=5.4,<6", "torch>=2.9", "torchvision>=0.24", "lightning>=2.6,<2.7", "peft>=0.18", "rich>=1",
             "hydra-core>=1.3.2,<1.4", "omegaconf>=2.3,<2.4", "decord>=0.6; platform_machine == 'x86_64'"]
        )
    }  # fmt: skip
    assert wanted["transformers-oldest"] == ("transformers==5.4",)
    assert wanted["transformers-newest"] == ("transformers<6,>=5.4",)
    assert wanted["torch-oldest"] == ("torch==2.9", "torchvision==0.24"), "what belongs together moves together"
    assert wanted["torch-newest"] == ("torch>=2.9", "torchvision>=0.24")
    assert wanted["hydra-oldest"] == ("hydra-core==1.3.2", "omegaconf==2.3")
    assert len(wanted) == 10


def test_our_own_ranges_have_ends_and_hold_what_is_here() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = [each for each in columns(project["dependencies"]) if each.name.endswith("-oldest")]
    here = installed(sys.executable)
    for column in oldest:
        for name, version in (each.split("==") for each in column.wanted):
            numbers = [tuple(int(part) for part in text.split("+")[0].split(".")[:2]) for text in (version, here[name])]
            assert numbers[0] <= numbers[1], name


@pytest.mark.slow
def test_what_pytest_says_is_read(tmp_path: Path) -> None:
    file = tmp_path / "test_few.py"
    file.write_text(
        "import warnings\ndef test_one(): warnings.warn('old name', FutureWarning)\ndef test_two(): assert 1 == 2\n",
        encoding="utf-8",
    )
    said, failed = run_tests(Path(sys.executable), [str(file)])
    assert said == "1 failed, 1 passed" and [name.rpartition("::")[2] for name in failed] == ["test_two"]
    said, failed = run_tests(Path(sys.executable), [str(tmp_path / "test_gone.py")])
    assert "passed" not in said and said and not failed


def test_the_table_names_what_moved_and_what_failed() -> None:
    found = [
        Found("peft-newest", {}, "as in constraints.txt", (), 9.6),
        Found("peft-oldest", {"peft": "0.18.0"}, "1 failed, 2 passed", ("tests/models/test_a.py::test_b",), 61.2),
    ]
    assert table(found).splitlines()[2:] == [
        "| peft-newest |  | as in constraints.txt | 10 |",
        "| peft-oldest | peft 0.18.0 | 1 failed, 2 passed | 61 |",
        "",
        "- peft-oldest: `tests/models/test_a.py::test_b`",
    ]


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_is_said_and_removed(tmp_path: Path) -> None:
    found = run_column(Column("none", ("peft==0.0.0.dev0",)), tmp_path / "env", ["tests/test_text.py"])
    assert found.said.startswith("pip: ") and not (tmp_path / "env").exists() and not found.versions
