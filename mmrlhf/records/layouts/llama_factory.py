"""LLaMA-Factory's data folder: `dataset_info.json` says of each data set which file it is, and its columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.records.descriptions import is_described, read_description
from mmrlhf.records.draft import Drafts
from mmrlhf.records.fields import wrong_type
from mmrlhf.records.json_text import Row
from mmrlhf.records.pair_forms import ranked_pair
from mmrlhf.records.ranked_rows import GroupBy, import_grouped
from mmrlhf.records.sources import OnBadLine
from mmrlhf.records.table_files import tables_source

INFO = "dataset_info.json"
LAYOUT = (
    'a folder with dataset_info.json, {NAME: {"file_name": FILE, "ranking": true, "columns": {...}}}, and its files'
)
# what a column is called where dataset_info.json does not say; a description with `columns` names all that it has
_ALPACA = {"prompt": "instruction", "query": "input"}
_SHAREGPT = {"messages": "conversations"}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
# meaning of a column -> the field of a pair that it becomes
_FIELDS = {
    "prompt": "instruction",
    "query": "input",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "history": "history",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "chosen": "chosen",
    "rejected": "rejected",
}


@dataclass(frozen=True)
class Described:
    """One entry of dataset_info.json: a data set of pairs, its file, and what its columns and roles are called."""

    name: str
    file: str
    columns: Mapping[str, str]
    tags: Mapping[str, str]

    def convert(self, row: Row, where: str) -> Row:
        """Bring a row into the full layout: columns by their meaning, messages by their roles."""
        fields = {_FIELDS[meaning]: column for meaning, column in self.columns.items() if meaning in _FIELDS}
        left = {name: value for name, value in row.items() if name not in fields.values()}
        found = {field: row.get(column) for field, column in fields.items()}
        for name in ("conversations", "chosen", "rejected"):
            if isinstance(found.get(name), list | dict):
                found[name] = self._messages(found[name], f"{where}:{fields[name]}")
        if isinstance(tools := found.get("tools"), str) and not tools.strip():
            found["tools"] = None
        return ranked_pair({**left, **found}, where)

    def _messages(self, value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [self._messages(item, f"{where}[{number}]") for number, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        role = value.get(self.tags["role_tag"])
        roles = {self.tags[tag]: role for tag, role in _ROLES.items() if tag in self.tags}
        if role not in roles:
            raise wrong_type(
                where, self.tags["role_tag"], role, f"one of {', '.join(roles)}: calls of tools are not read"
            )
        return {"role": roles[role], "content": value.get(self.tags["content_tag"])}


def import_llama_factory(
    root: Path | str,
    *,
    dataset: str | None = None,
    file: str | None = None,
    media_folder: str = "",
    group_by: GroupBy = "query",
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read a data set of pairs (`ranking: true`) that dataset_info.json describes.

    Args:
        root: the folder with dataset_info.json.
        dataset: which of its data sets; by default the only one with pairs whose file is there.
        file: another file, or pattern, than the description names.
        media_folder: folder below root that media paths are relative to (`media_dir`).
        group_by, on_bad_line, media, source, licence: as in `import_grouped`.

    Raises:
        DataError: no dataset_info.json, no such data set, or several to choose from.
    """
    root = Path(root)
    described = _chosen(root, dataset)
    place = root / (file or described.file)
    pattern = f"{described.file}/*" if file is None and place.is_dir() else (file or described.file)
    return import_grouped(
        tables_source(root, pattern, media_folder, LAYOUT).converted(described.convert),
        group_by=group_by, on_bad_line=on_bad_line, media=media, source=source or described.name, licence=licence,
        layout=LAYOUT,
    )  # fmt: skip


def is_llama_factory(root: Path) -> bool:
    """Say whether a folder has a dataset_info.json of this kind, and not of a saved `datasets` folder."""
    return is_described(root / INFO, _described)


def _chosen(root: Path, dataset: str | None) -> Described:
    pairs = _described(root)
    there = {name: entry for name, entry in pairs.items() if os.path.exists(root / entry.file)}
    if dataset is None and len(there) == 1:
        return next(iter(there.values()))
    if dataset in pairs:
        return pairs[dataset]
    raise DataError(
        "no such data set" if dataset else "which data set is meant",
        where=root / INFO,
        given=dataset
        or (", ".join(there) if there else f"no file of {', '.join(pairs) or 'a data set of pairs'} is here"),
        expected="the name of one with `ranking: true` whose file is in the folder",
        fix="name it: importer.dataset=NAME" if there else "fetch the data set, and name its file (file_name)",
    )


def _described(root: Path) -> dict[str, Described]:
    return {
        name: _entry(name, entry)
        for name, entry in read_description(root / INFO, "description of data sets", LAYOUT).items()
        if isinstance(entry, dict) and entry.get("ranking") and isinstance(entry.get("file_name"), str)
    }


def _entry(name: str, entry: Mapping[str, Any]) -> Described:
    usual = _ALPACA if entry.get("formatting", "alpaca") == "alpaca" else _SHAREGPT
    columns = entry.get("columns", {**usual, "chosen": "chosen", "rejected": "rejected"})
    tags = entry.get("tags", _TAGS)
    if entry.get("formatting") == "openai" and "tags" not in entry:
        tags = {**_TAGS, "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    if not all(isinstance(each, dict) and all(isinstance(v, str) for v in each.values()) for each in (columns, tags)):
        raise DataError("a description has another structure", where=f"{INFO}: {name}", expected=LAYOUT)
    return Described(name, entry["file_name"], columns, {"role_tag": "from", "content_tag": "value", **tags})
