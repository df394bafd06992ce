"""Fingerprints: one hash for everything that determines an artefact, and nothing that does not.

A stage's fingerprint covers its target, its settings and the fingerprints of its inputs. An input that another stage
builds counts by that artefact's fingerprint, a path of the user's by its content as far as that is cheap to know, and
a hub id by its name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded, is_remote
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.trees import leaves, map_leaves

MANIFEST_FILE = "manifest.json"
# of a fingerprint, in the name of an artefact's folder
FINGERPRINT_DIGITS = 12


def canonical_json(value: Any) -> str:
    """Write settings in one way only: keys sorted, no spaces, 1.0 as 1 (a sweep may say either).

    Raises ConfigError for what is no number, text, list or mapping, and for numbers that are not finite.
    """
    return json.dumps(map_leaves(value, _normalise), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _normalise(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(
            "a setting is no finite number", given=value, expected="a number; null where there is no limit"
        )
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError("a setting cannot be fingerprinted", given=repr(value), expected="numbers, text, lists, mappings")


def digest(*parts: Any) -> str:
    """Hash settings to 64 hex digits (SHA-256 of their canonical JSON)."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()


def artifact_token(fingerprint: str, sub: str = "") -> str:
    """Name a place inside an artefact, independent of the folder that it lies in."""
    return f"artifact:{fingerprint}/{sub.strip('/')}"


def path_token(path: Path) -> str:
    """Fingerprint what a path of the user's holds.

    Inside an artefact of a store, which its folder's name says, the artefact's fingerprint; a folder of shards, its
    manifest; anything else, a listing of names, sizes and modification times.

    Raises ConfigError if the path does not exist.
    """
    path = expanded(path).resolve()
    if not path.exists():
        raise ConfigError("an input does not exist", given=path, fix="check the path, or name a stage: `stage:pack`")
    for folder in (path, *path.parents):
        record = folder / ARTIFACT_FILE
        if record.is_file():
            fingerprint = _read_json(record).get("fingerprint")
            # any other folder with such a file is the user's: what is below it may have changed since
            if isinstance(fingerprint, str) and folder.name == fingerprint[:FINGERPRINT_DIGITS]:
                return artifact_token(fingerprint, path.relative_to(folder).as_posix().strip("."))
    if (path / MANIFEST_FILE).is_file():
        return "manifest:" + hashlib.sha256((path / MANIFEST_FILE).read_bytes()).hexdigest()
    return "listing:" + digest(list(_listing(path)))


def _listing(path: Path) -> Iterator[list[Any]]:
    files = [path] if path.is_file() else sorted(_files_below(path, ()))
    for file in files:
        stat = file.stat()
        yield [file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns]


def _files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Files of a folder, also behind links to folders, which readers follow; a link to a folder above ends there."""
    real = folder.resolve()
    if real in above:
        return
    for item in folder.iterdir():
        if item.is_dir():
            yield from _files_below(item, (*above, real))
        elif item.is_file():
            yield item


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def source_tokens(settings: Any, inputs: Collection[str]) -> dict[str, str]:
    """What each of the user's own inputs inside settings holds: text -> token.

    A text counts as an input if it is one of `inputs` or an absolute path, and something exists there, or if it is the
    address of remote shards; any other text (a hub id, a mode) does not.
    """
    texts = (leaf for leaf in leaves(settings) if isinstance(leaf, str))
    found = {text: _source_token(text) for text in texts if text in inputs or text.startswith("/")}
    return {text: token for text, token in found.items() if token is not None}


def _source_token(text: str) -> str | None:
    if is_remote(text):
        from mmrlhf.shards.remote import manifest_token  # takes seconds to import; only where something is remote

        return manifest_token(text)
    path = expanded(text)
    return path_token(path) if path.exists() else None


def replace_texts(settings: Any, tokens: Mapping[str, str]) -> Any:
    """Copy settings with the tokens in place of the texts that have one."""
    return map_leaves(settings, lambda leaf: tokens.get(leaf, leaf) if isinstance(leaf, str) else leaf)
