"""The floors of the package: a file imports only from lower floors, and packages of one floor never each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FLOORS = {
    "types": 0,
    "errors": 0,
    "media": 1,
    "losses": 1,
    "metrics": 1,
    "shapes": 1,
    "data": 2,
    "models": 2,
    "methods": 3,
    "callbacks": 3,
    "stages": 4,
    "composition": 5,
    "app": 6,
    "dashboard": 6,
}
FILES = sorted((PROJECT / "mmrlhf").rglob("*.py"))


def _part(module: str) -> str:
    return (module.split(".") + [""])[1]


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
            if node.module == "mmrlhf":
                yield from ((node.lineno, f"mmrlhf.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def test_there_are_files() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_imports_go_down(file: Path) -> None:
    own = file.relative_to(PROJECT / "mmrlhf").with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in FLOORS, f"{own} has no floor"
    for line, module in _imports(file):
        top = module.split(".")[0]
        assert top not in ("experiments", "benchmarks", "tests", "run"), f"{file}:{line} imports {module}"
        if top == "mmrlhf" and _part(module) not in ("", own):
            allowed = FLOORS[_part(module)] < FLOORS[own]
            assert allowed, f"{file}:{line}: {own} is on floor {FLOORS[own]} and imports {module}"


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(
        "from mmrlhf import stages\nimport mmrlhf.app\n\ndef f():\n    from mmrlhf.data.index import Index\n"
    )
    assert sorted(_part(module) for _, module in _imports(file)) == ["app", "data", "stages"]


def test_names_say_something() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [file for file in FILES if vague & set(file.with_suffix("").parts)]
