"""The code behind a stage: the modules that it can reach, found in their source without importing any of them.

A module counts by its syntax tree without docstrings, so comments, docstrings and layout change nothing. Modules of
installed packages do not count; their versions are in the artefact's record.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from mmrlhf.trees import leaves

PACKAGE = "mmrlhf"
_ROOT = Path(__file__).resolve().parents[2]
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def closure(modules: Iterable[str]) -> dict[str, str]:
    """Hash modules and all that they import, at any place and depth: dotted name -> 16 hex digits.

    Only source files outside of installed packages count; other names are passed over.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = None if name in seen else module_file(name)
        seen.add(name)
        if file is None:
            continue
        found[name], imported = _read(file, file.stat().st_mtime_ns)
        waiting += [_absolute(other, name, file) for other in imported]
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # a package runs before its modules
    return found


def split_closure(target: str, settings: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Hash a stage's code: (modules of this package, modules of the user's own).

    Args:
        target: dotted name of the stage's function.
        settings: may name functions and classes in `_target_`s, or modules' members as text, at any depth.
    """
    names = {target, *(leaf for leaf in leaves(settings) if isinstance(leaf, str) and _DOTTED.fullmatch(leaf))}
    found = closure({name.rpartition(".")[0] for name in names} | names)
    package = {name: value for name, value in found.items() if name.partition(".")[0] == PACKAGE}
    return package, {name: value for name, value in found.items() if name not in package}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Modules that are new, gone or different."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def joined(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Hashes of what one code has begun and another went on with: where they differ both, which no one code has."""
    both = {name: before.get(name, "").split("+") for name in {*before, *now}}
    return {
        name: "+".join(old if now.get(name, "") in old else [*old, now.get(name, "")])
        for name, old in sorted(both.items())
    }


def describe(modules: list[str], most: int = 3) -> str:
    """Name a few modules and count the rest."""
    shown = ", ".join(name.removeprefix(f"{PACKAGE}.") for name in modules[:most])
    return shown + (f" and {len(modules) - most} more" if len(modules) > most else "")


def module_file(name: str) -> Path | None:
    """The source file of a module, or of a package's `__init__`; None where there is none, or it is installed."""
    if name.partition(".")[0] == PACKAGE:
        return _package_file(_ROOT, name)
    first, *rest = name.split(".")
    spec = PathFinder.find_spec(first, [*sys.path, os.getcwd()]) if first not in sys.builtin_module_names else None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        place = None if rest or spec.origin is None else Path(spec.origin)
        file = place if place is not None and place.suffix == ".py" else None
    else:
        files = (_below(Path(folder).joinpath(*rest)) for folder in spec.submodule_search_locations)
        file = next((found for found in files if found is not None), None)
    return None if file is None or _is_installed(file.resolve()) else file


@cache
def _package_file(root: Path, name: str) -> Path | None:
    return _below(root.joinpath(*name.split(".")))


def _below(place: Path) -> Path | None:
    for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if file.is_file():
            return file
    return None


def _is_installed(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(folder).resolve() for folder in [*folders, *site.getsitepackages(), site.getusersitepackages()])


def _absolute(imported: str, importer: str, file: Path) -> str:
    """Resolve the dots in front of a relative import."""
    level = len(imported) - len(imported.lstrip("."))
    if not level:
        return imported
    package = importer.split(".") if file.name == "__init__.py" else importer.split(".")[:-1]
    return ".".join([*package[: len(package) - level + 1], imported.lstrip(".")]).rstrip(".")


@cache
def _read(file: Path, changed_at: int) -> tuple[str, tuple[str, ...]]:
    """(hash, imported names) of a source file; names of an import's members too, which may be modules."""
    source = file.read_bytes()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()[:16], ()  # whoever imports it will say so
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            joint = "" if origin.endswith(".") else "."
            imported += [origin, *(f"{origin}{joint}{alias.name}" for alias in node.names)]
        if isinstance(node, _SCOPES) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], tuple(dict.fromkeys(imported))
