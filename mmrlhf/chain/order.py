"""From stage settings to the order in which stages run, checked before any of them does.

Settings are plain mappings: `_target_`, the dotted name of a stage function `run(out, *, ..., runtime)`, and its
keyword arguments. A text `stage:NAME` or `stage:NAME/sub/path` anywhere inside stands for the artefact of stage NAME.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import time
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import expanded, is_remote
from mmrlhf.trees import leaves, map_leaves, without

_REFERENCE = re.compile(r"stage:(?P<name>[A-Za-z0-9_-]+)(?:/(?P<sub>.*))?")
_GIVEN_BY_RUNNER = ("out", "runtime")


@dataclass(frozen=True)
class Node:
    """One stage of a chain: its name, the dotted name of its function, its settings, the stages it reads from."""

    name: str
    target: str
    settings: Mapping[str, Any]
    references: tuple[str, ...]


def plan_chain(goal: str, read: Callable[[str], Mapping[str, Any]], names: Collection[str]) -> list[Node]:
    """List the stages that `goal` needs, each after those it reads from, `goal` last.

    Args:
        goal: the stage that is wanted.
        read: gives the settings of a stage by its name; called for the stages that are needed only.
        names: all stages there are.

    Raises ConfigError for an unknown stage (naming near ones) and for stages that need each other.
    """
    done: dict[str, Node] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in done:
            return
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise ConfigError("stages need each other", where=circle, fix="give one of their inputs a path of your own")
        if name not in names:
            raise _unknown_stage(name, path, names)
        settings = dict(read(name))
        target = settings.pop("_target_", None)
        if not isinstance(target, str):
            raise ConfigError("a stage has no `_target_`", where=f"stages.{name}", expected="the name of a function")
        references = tuple(dict.fromkeys(reference for reference, _ in iterate_references(settings)))
        for reference in references:
            visit(reference, (*path, name))
        done[name] = Node(name, target, settings, references)

    visit(goal, ())
    return list(done.values())


def _unknown_stage(name: str, path: Sequence[str], names: Collection[str]) -> ConfigError:
    return ConfigError(
        "there is no such stage",
        where=f"stages.{path[-1]}" if path else "stage",
        given=name,
        expected="one of " + ", ".join(names),
        fix=suggestion(name, names),
    )


def suggestion(given: str, known: Collection[str]) -> str | None:
    """Say `did you mean ...?` for the known names that are close to what was given."""
    near = difflib.get_close_matches(given, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None


def iterate_references(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (stage name, path inside its artefact) for every `stage:` text inside a setting."""
    return (parse_reference(leaf) for leaf in leaves(value) if _is_reference(leaf))


def _is_reference(leaf: Any) -> bool:
    return isinstance(leaf, str) and leaf.startswith("stage:")


def parse_reference(text: str) -> tuple[str, str]:
    """Split `stage:NAME/sub/path` into NAME and `sub/path` (empty for the whole artefact)."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ConfigError("not a reference to a stage", given=text, expected="stage:NAME or stage:NAME/sub/path")
    return match["name"], match["sub"] or ""


def replace_references(value: Any, lookup: Callable[[str, str], str]) -> Any:
    """Copy a setting with `lookup(name, sub)` in place of every `stage:NAME/sub`."""
    return map_leaves(value, lambda leaf: lookup(*parse_reference(leaf)) if _is_reference(leaf) else leaf)


def stage_module(target: str) -> ModuleType:
    """Import the module that a stage function lives in; raises ConfigError if there is none of that name."""
    name = target.rpartition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the stage exists; something that it needs does not
        raise ConfigError("a stage's `_target_` names no module", given=target) from error


def stage_function(target: str) -> Callable[..., Mapping[str, Any]]:
    """Find the function behind a stage's `_target_`; raises ConfigError if there is none."""
    name = target.rpartition(".")[2]
    functions: Mapping[str, Any] = vars(stage_module(target))
    if not callable(functions.get(name)):
        raise ConfigError("a stage's `_target_` names no function", given=target)
    return functions[name]


def is_reusable(node: Node) -> bool:
    """Say whether a stage's artefact may stand for running it again; not if its module says `REUSABLE = False`."""
    return getattr(stage_module(node.target), "REUSABLE", True)


def version(node: Node) -> int:
    """The version of a stage's code, `VERSION` in its module; 1 where that says none. Another one is built anew."""
    return int(getattr(stage_module(node.target), "VERSION", 1))


def determinants(node: Node) -> list[Any]:
    """What a stage's result depends on beside settings, inputs and code: the time, if it is not reusable."""
    return [] if is_reusable(node) else [time.time_ns()]


def counted_settings(node: Node) -> dict[str, Any]:
    """A stage's settings without those that its module says in `LIMITS`: dotted names of what no result depends on."""
    return without(node.settings, getattr(stage_module(node.target), "LIMITS", ()))


def check_promises(node: Node, out: Path) -> None:
    """Make sure that a stage has left what its module says in `PROMISES`: names of files and folders in its artefact.

    Raises DataError, naming what is missing.
    """
    promised: Sequence[str] = getattr(stage_module(node.target), "PROMISES", ())
    missing = [name for name in promised if not (out / name).exists()]
    if missing:
        raise DataError(
            f"stage {node.name} has ended without all of its result, so nothing is published",
            where=out, given="no " + ", no ".join(missing), expected=", ".join(promised),
            fix="run it again; if it ends so again, delete this folder first",
        )  # fmt: skip


def check_signature(node: Node) -> None:
    """Compare a stage's settings with its function's arguments; raises ConfigError for unknown or missing ones."""
    parameters = inspect.signature(stage_function(node.target)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    accepted = [name for name in parameters if name not in _GIVEN_BY_RUNNER]
    for key in node.settings:
        if key not in accepted and not key.startswith("_"):
            raise ConfigError(
                "a stage has no such setting",
                where=f"stages.{node.name}",
                given=key,
                expected="one of " + ", ".join(accepted),
                fix=suggestion(key, accepted),
            )
    required = [name for name in accepted if parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in required if name not in node.settings]
    if missing:
        raise ConfigError("a stage's setting is missing", where=f"stages.{node.name}", expected=", ".join(missing))


def with_paths(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Make `Path`s of the texts that a stage function wants as paths.

    Only where the annotation allows a Path and no text: where both are allowed, the text may be a hub id. An address
    stays as it is.
    """
    hints = typing.get_type_hints(function)
    return {
        name: expanded(value)
        if isinstance(value, str) and wants_path(hints.get(name)) and not is_remote(value)
        else value
        for name, value in arguments.items()
    }


def wants_path(annotation: Any) -> bool:
    """Say whether an argument's annotation allows a Path and no text (which could be a hub id)."""
    if typing.get_origin(annotation) in (UnionType, typing.Union):
        members = typing.get_args(annotation)
        return Path in members and str not in members
    return annotation is Path
