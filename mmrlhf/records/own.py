"""Any other layout through a function of the user's, named in the config: `data.importer=my_module.my_function`.

The function takes the data folder and yields mappings: ranked records (`{"id", "prompt", "images", "responses"}`) or
pairs (`{"id", "prompt", "images", "chosen", "rejected"}`). They are checked, regrouped and reported like any others.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.errors import ConfigError
from mmrlhf.records.draft import Drafts
from mmrlhf.records.pair_forms import is_pair
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.ranked_rows import import_ranked
from mmrlhf.records.sources import OnBadLine, items_source

OwnFunction = Callable[[Path], Iterable[Mapping[str, Any]]]


def import_own(
    root: Path | str,
    *,
    function: str,
    on_bad_line: OnBadLine = "reject",
    media: bool = True,
    source: str = "",
    licence: str = "",
) -> Drafts:
    """Read what a function of the user's yields.

    The function is called once, and its records pass one by one. Media may be paths below root, or lie inside: bytes,
    `{"bytes": ...}`, data URLs and Pillow's images. An exception that it raises is its own and is not caught.

    Args:
        root: what the function is called with; media paths are relative to it.
        function: `module.function`, importable from the current folder.
        on_bad_line, media, source, licence: as in `import_ranked`.

    Raises:
        ConfigError: no such function.
        DataError: while drafts are taken, bad records (unless rejected), or none.
    """
    root = Path(root)
    own: OwnFunction = find_function(function)
    first, rows = items_source(lambda: own(root), root, function).begun()
    read = import_pairs if is_pair(first) else import_ranked
    return read(rows, on_bad_line=on_bad_line, media=media, source=source, licence=licence)


def find_function(name: str, setting: str = "data.importer") -> Callable[..., Any]:
    """Import `module.function`, also from the current folder; ConfigError names `setting` if there is none."""
    module_name, _, function_name = name.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    function: Any = None
    try:
        function = getattr(importlib.import_module(module_name), function_name, None) if module_name else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it needs does not
    if not callable(function):
        raise ConfigError(
            "importer cannot be found",
            where=setting,
            given=name,
            expected="the name of a function, module.function",
            fix="put module.py into the current folder, or on PYTHONPATH; docs/data.md shows one in ten lines",
        )
    return function
