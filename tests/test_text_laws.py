"""Laws over the whole package: one way to print, one way to split lines, and every encoding named."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FILES = sorted(file for room in ("mmrlhf", "benchmarks", "experiments") for file in (PROJECT / room).rglob("*.py"))
# `splitlines` for what is shown or comes from the system; lines of files end at line feeds only
SPLITS = {
    "mmrlhf/text.py",
    "mmrlhf/composition/overrides.py",
    "mmrlhf/composition/signatures.py",
    "benchmarks/measure.py",
}
Law = Callable[[ast.AST], bool]


def name_of(call: ast.AST) -> str:
    """The last name of what is called; "" for anything but a call."""
    function = call.func if isinstance(call, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def prints_by_itself(node: ast.AST) -> bool:
    """rich's tables, texts and panels made, filled or printed elsewhere than in the terminal's own room."""
    if isinstance(node, ast.ImportFrom):
        made = {"Table", "Text", "Panel", "Markdown", "print", "Columns", "Tree"}
        names = {alias.name for alias in node.names}
        return (node.module or "").startswith("rich.markup") or (
            (node.module or "").split(".")[0] == "rich" and bool(names & made) and names != {"Table"}
        )
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return isinstance(node, ast.Call) and name_of(node) == "Table"
    if getattr(node.func.value, "id", "") in ("Confirm", "Prompt"):
        return not node.args or name_of(node.args[0]) != "literal"
    return node.func.attr in ("add_row", "add_column", "from_markup", "print", "log_json")


def splits_everywhere(node: ast.AST) -> bool:
    return name_of(node) == "splitlines"


def names_no_encoding(node: ast.AST) -> bool:
    """A text file opened in whatever encoding the machine happens to have."""
    if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
        return False
    method = isinstance(node.func, ast.Attribute)
    match name_of(node):
        case "read_text":
            return not node.args
        case "write_text":
            return len(node.args) < 2
        case "fdopen":
            return "b" not in mode_of(node, 1)
        case "open":
            place = 0 if method else 1
            other = method and node.args and not isinstance(node.args[0], ast.Constant)  # of an image, a tar, a store
            return not other and "b" not in mode_of(node, place)
    return False


def mode_of(call: ast.Call, place: int) -> str:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] + call.args[place : place + 1]
    return str(given[0].value) if given and isinstance(given[0], ast.Constant) else "r"


def broken(law: Law, source: str) -> Iterator[int]:
    yield from (node.lineno for node in ast.walk(ast.parse(source)) if law(node))  # type: ignore[attr-defined]


def room(file: Path) -> str:
    return file.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize(
    ("law", "free"),
    [
        (prints_by_itself, {room(file) for file in FILES if "mmrlhf/terminal" in room(file)}),
        (splits_everywhere, SPLITS),
        (names_no_encoding, set()),
    ],
)
def test_the_whole_package_keeps(law: Law, free: set[str]) -> None:
    assert len(FILES) > 150
    found = [
        f"{room(file)}:{line}"
        for file in FILES
        if room(file) not in free
        for line in broken(law, file.read_text(encoding="utf-8"))
    ]
    assert not found, f"{law.__name__}: {', '.join(found)}"


@pytest.mark.parametrize(
    ("law", "source"),
    [
        (prints_by_itself, "from rich.text import Text"),
        (prints_by_itself, "from rich.table import Column, Table"),
        (prints_by_itself, "t = Table('a')"),
        (prints_by_itself, "t.add_row(x)"),
        (prints_by_itself, "console.print(f'{x}')"),
        (prints_by_itself, "Confirm.ask(question)"),
        (splits_everywhere, "text.splitlines()"),
        (names_no_encoding, "p.read_text()"),
        (names_no_encoding, "p.write_text(x)"),
        (names_no_encoding, "p.open('a', newline='')"),
        (names_no_encoding, "open(p)"),
        (names_no_encoding, "open(p, 'w')"),
        (names_no_encoding, "p.open(mode='w')"),
    ],
)
def test_a_breach_would_be_seen(law: Law, source: str) -> None:
    assert list(broken(law, source)) == [1]


@pytest.mark.parametrize(
    "source", ["p.open('rb')", "Image.open(p)", "open(p, mode='wb')", "p.read_text(encoding='utf-8')"]
)
def test_what_is_right_is_left_alone(source: str) -> None:
    assert not list(broken(names_no_encoding, source))
