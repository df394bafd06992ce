"""The rooms of the package: a file imports only from lower rooms, no two folders import each other, at any depth."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "mmrlhf"
# from the ground up; rooms of one floor do not import each other
FLOORS = (
    ("text", "trees", "conversation"),
    ("errors", "types", "tensors"),
    ("files", "ranges"),
    ("parts", "processes", "losses", "metrics", "media", "endpoints", "summaries"),
    ("terminal", "records", "tokens", "models"),
    ("shapes", "shards", "methods", "callbacks"),
    ("feed", "chain"),
    ("inference", "reporting"),
    ("judging", "expansion"),
    ("training", "sweeps", "suites", "serving", "curation", "responders"),
    ("annotation",),
    ("triage",),
    ("stages",),
    ("composition",),
    ("app",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
LARGEST_SHARE = 0.15
Edge = tuple[str, str]


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
            # `from mmrlhf.stages import pack`: the module is the name
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str:
    """The room that a dotted name starts in; "" outside the package."""
    names = module.split(".")
    return names[1] if names[0] == "mmrlhf" and len(names) > 1 else ""


def folder_edges(files: Iterable[Path], root: Path) -> Counter[Edge]:
    """How many imports run from one folder to another, at any depth; siblings and parents are folders of their own."""
    edges: Counter[Edge] = Counter()
    for file in files:
        own = ".".join(file.relative_to(root.parent).parent.parts)
        for _, module in imports_of(file):
            path = root.parent.joinpath(*module.split("."))
            while path != path.parent and not path.is_dir():
                path = path.parent
            if root in (path, *path.parents) and path != root:
                edges[own, ".".join(path.relative_to(root.parent).parts)] += 1
    return Counter({edge: count for edge, count in edges.items() if edge[0] != edge[1]})


def pairs_both_ways(edges: Iterable[Edge]) -> list[Edge]:
    """Pairs of folders that import each other."""
    return sorted({edge for edge in edges if edge[::-1] in set(edges) and edge[0] < edge[1]})


def test_every_room_has_a_floor() -> None:
    rooms = {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in FILES} - {"__init__"}
    assert len(FILES) > 100 and rooms <= set(FLOOR), f"rooms without a floor: {rooms - set(FLOOR)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_imports_go_down(file: Path) -> None:
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for line, module in imports_of(file):
        top = module.split(".")[0]
        assert top not in ("experiments", "benchmarks", "tests", "run"), f"{file}:{line} imports {module}"
        room = room_of(module)
        if room in FLOOR and room != own and own != "__init__":
            assert FLOOR[room] < FLOOR[own], f"{file}:{line}: {own} is on floor {FLOOR[own]} and imports {module}"


def test_no_two_folders_import_each_other() -> None:
    edges = folder_edges((file for file in FILES if file.parent != PACKAGE), PACKAGE)
    assert len(edges) > 40 and not pairs_both_ways(edges)
    graph: dict[str, set[str]] = {}
    for start, end in edges:
        graph.setdefault(start, set()).add(end)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"folders import each other in a circle: {error.args[1]}")


def test_no_room_is_a_hall() -> None:
    lines = Counter(
        {room: sum(len(f.read_text().splitlines()) for f in PACKAGE.glob(f"{room}/**/*.py")) for room in FLOOR}
    )
    total = sum(len(file.read_text().splitlines()) for file in FILES)
    assert not [room for room, count in lines.items() if count > LARGEST_SHARE * total], lines.most_common(3)


def test_the_page_names_every_room() -> None:
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {room for room in FLOOR if f"`{room}/`" in page or f"`{room}.py`" in page}
    assert named == set(FLOOR)


def test_a_file_name_says_what_is_in_it() -> None:
    """No vague names; and no name in two rooms, but for a stage and what it runs."""
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
    assert not [file for file in FILES if vague & set(file.with_suffix("").parts)]
    names = Counter(file.stem for file in FILES if "stages" not in file.parts and file.stem != "__init__")
    shared = {
        "settings",
        "image_conditional",
        "policy",
    }  # of inference and training; a loss and its module; its metrics
    assert not {name for name, count in names.items() if count > 1} - shared


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    """A wrong floor, and two nested folders that import each other."""
    root = tmp_path / "mmrlhf"
    (root / "a" / "inner").mkdir(parents=True)
    (root / "a" / "outer.py").write_text("def f():\n    from mmrlhf.a.inner.deep import g\n")
    (root / "a" / "inner" / "deep.py").write_text("from mmrlhf.a import outer\nimport mmrlhf.app\n")
    files = sorted(root.rglob("*.py"))
    assert {room_of(module) for file in files for _, module in imports_of(file)} == {"a", "app"}
    assert pairs_both_ways(folder_edges(files, root)) == [("mmrlhf.a", "mmrlhf.a.inner")]
