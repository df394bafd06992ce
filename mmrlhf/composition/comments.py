"""What a config file says of a key in the comment above it, for keys that no parameter explains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmrlhf.files import read_lines

_KEY = re.compile(r"( *)([\w.-][\w .-]*):(?: |$)")
_COMMENT = re.compile(r" *# ?(.*)")
_GLOBAL = "@package _global_"


def comments(folders: Iterable[Path]) -> dict[str, str]:
    """Read the comments of every file: dotted key -> text; of several options of a group, the first that has the key.

    Args:
        folders: conf/ and those of the user's own.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path)):
            lines = read_lines(file)
            group = ".".join(file.relative_to(folder).parent.parts)
            prefix = "" if lines and _GLOBAL in lines[0] else group
            for key, text in _commented(lines):
                found.setdefault(f"{prefix}.{key}".lstrip("."), text)
    return found


def comment_of(key: str, known: Mapping[str, str]) -> str:
    """The comment above a key, else that above the section that it is in; empty where there is none."""
    while key:
        if key in known:
            return known[key]
        key = key.rpartition(".")[0]
    return ""


def _commented(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, comment) of the keys with comments directly above them."""
    above: list[tuple[int, str]] = []
    texts: list[str] = []
    for line in lines:
        comment, match = _COMMENT.fullmatch(line), _KEY.match(line)
        if comment is not None:
            texts += [] if _GLOBAL in line else [comment[1].strip()]
            continue
        if match is not None:
            above = [item for item in above if item[0] < len(match[1])] + [(len(match[1]), match[2])]
            if texts:
                yield ".".join(name for _, name in above), " ".join(texts)
        texts = []
