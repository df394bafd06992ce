"""Scripts that are no modules of the package, loaded for tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def loaded_script(name: str, path: str) -> Iterator[ModuleType]:
    """Load a script of the project as a module, for as long as the block lasts."""
    specification = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where dataclasses look their module up
    specification.loader.exec_module(module)
    try:
        yield module
    finally:
        del sys.modules[name]
