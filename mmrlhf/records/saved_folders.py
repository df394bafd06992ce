"""Folders that `Dataset.save_to_disk` of the library `datasets` has written: Arrow files, and what says their order."""

from __future__ import annotations

from pathlib import Path

from mmrlhf.errors import DataError
from mmrlhf.records.descriptions import read_description

STATE, PARTS = "state.json", "dataset_dict.json"
_WHAT, _EXPECTED = "description of a saved data set", "what `Dataset.save_to_disk` writes"


def saved_tables(root: Path) -> list[Path]:
    """Return the Arrow files of a saved data set in their order; none if the folder is no saved data set.

    Raises:
        DataError: several parts (train, test) to choose from, a file that is missing, or a selection of rows.
    """
    if (root / PARTS).is_file():
        parts = read_description(root / PARTS, _WHAT, _EXPECTED).get("splits")
        if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], str):
            raise DataError(
                "saved data set has several parts", where=root, given=parts, expected="one of them",
                fix="name its folder: data.root=.../PART",
            )  # fmt: skip
        root = root / parts[0]
    if not (root / STATE).is_file():
        return []
    state = read_description(root / STATE, _WHAT, _EXPECTED)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            "saved data set is a selection of rows of its files", where=root / STATE,
            fix="save it again: newer versions of `datasets` write the selected rows",
        )  # fmt: skip
    files = state.get("_data_files")
    names = (
        [item.get("filename") if isinstance(item, dict) else None for item in files] if isinstance(files, list) else []
    )
    tables = [root / name for name in names if isinstance(name, str) and Path(name).name == name]
    missing = [path for path in tables if not path.is_file()]
    if not tables or len(tables) < len(names) or missing:
        raise DataError(
            "saved data set lacks a file", where=root / STATE, given=missing or names,
            expected="the Arrow files that it names, in this folder",
        )  # fmt: skip
    return tables
