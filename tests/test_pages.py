"""Files that the pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
# a path of at least one folder; words in capitals stand for a name, and a reader's own files begin with my_
NAMED = re.compile(r"(?<![\w/.:-])((?:[\w.-]+/)+[\w-]+\.(?:py|yaml))\b")
# a file alone, in code marks: of this project, unless its line says whose repository it is of
ALONE = re.compile(r"`(\w+\.py)`")
OF_OTHERS = re.compile(r"\| [\w.-]+/[\w.-]+, `")
FILES = {
    str(path.relative_to(PROJECT))
    for folder in ("mmrlhf", "conf", "tests", "docs", "benchmarks", "experiments", "examples")
    for path in (PROJECT / folder).rglob("*.*")
} | {path.name for path in PROJECT.glob("*.*")}


def exists(name: str) -> bool:
    """Whether a name is that of a file, or the end of one's path (`feed/plan.py`)."""
    path = name.removeprefix("../")
    return any(file == path or file.endswith(f"/{path}") for file in FILES)


def named_files(text: str) -> set[str]:
    """Paths, and bare names of modules, that a page names as this project's."""
    paths = {name for name in NAMED.findall(text) if not name.startswith("my_") and not re.search("[A-Z]{2}", name)}
    own = "\n".join(line for line in text.split("\n") if not OF_OTHERS.search(line))
    return paths | set(ALONE.findall(own))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert not sorted(name for name in named_files(page.read_text(encoding="utf-8")) if not exists(name))


def test_a_wrong_name_would_be_seen() -> None:
    text = "`mmrlhf/data/plan.py`, [it](data/scan.py), `feed/plan.py`, `gone.py`, see tests/data/test_x.py; my_x/a.py"
    found = named_files(text)
    assert found == {"mmrlhf/data/plan.py", "data/scan.py", "feed/plan.py", "gone.py", "tests/data/test_x.py"}
    assert {name for name in found if exists(name)} == {"feed/plan.py"}
    assert sum(len(named_files(page.read_text(encoding="utf-8"))) for page in PAGES) > 80
