"""Trees of settings and of summaries: mappings and lists inside one another, and leaves, which are anything else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


def map_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Copy a tree with `change(leaf)` in place of every leaf; mappings become dicts of text keys, tuples lists."""
    if isinstance(tree, Mapping):
        return {str(key): map_leaves(item, change) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [map_leaves(item, change) for item in tree]
    return change(tree)


def plain(tree: Any) -> Any:
    """Copy a tree with leaves that JSON can hold: tensors and NumPy scalars into numbers, paths into text."""
    return map_leaves(tree, _plain_leaf)


def _plain_leaf(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else value.tolist()  # tensors, NumPy arrays and scalars


def leaves(tree: Any) -> Iterator[Any]:
    """Yield every leaf of a tree, in its order."""
    return (leaf for _, leaf in named_leaves(tree))


def named_leaves(tree: Any, separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (`outer.inner`, leaf) for every leaf of a tree; an item of a list is named by its number."""
    if isinstance(tree, Mapping | list | tuple):
        for key, item in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from named_leaves(item, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    else:
        yield prefix, tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay mappings inside one another out as `outer.inner` -> value; a list is a value, and so is an empty mapping."""
    found: dict[str, Any] = {}
    for key, item in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= flat(item, name) if isinstance(item, Mapping) and item else {name: item}
    return found


def without(tree: Any, names: Collection[str], prefix: str = "") -> Any:
    """Copy a tree of mappings without the values that `outer.inner` names; `*` in a name stands for any."""
    if not isinstance(tree, Mapping):
        return tree
    items = {f"{prefix}.{key}" if prefix else str(key): (key, item) for key, item in tree.items()}
    left = {name: each for name, each in items.items() if not any(fnmatchcase(name, pattern) for pattern in names)}
    return {key: without(item, names, name) for name, (key, item) in left.items()}


def described_objects(tree: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (dotted path, node) for every mapping of a tree that says `_target_`, outer ones first; "" is the top."""
    if isinstance(tree, Mapping) and "_target_" in tree:
        yield prefix, tree
    if isinstance(tree, Mapping | list | tuple):
        for key, item in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from described_objects(item, f"{prefix}.{key}" if prefix else str(key))
