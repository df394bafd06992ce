"""`import mmrlhf`: what a user calls, at no cost until it is called."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmrlhf


def test_the_import_loads_nothing(project: Path) -> None:
    code = "import sys, mmrlhf; print(sorted(set(sys.modules) & {'torch', 'transformers', 'numpy', 'hydra', 'PIL'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=project)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_listed() -> None:
    assert len(mmrlhf.__all__) >= 5 and set(mmrlhf.__all__) <= set(dir(mmrlhf))
    for name in mmrlhf.__all__:
        assert getattr(mmrlhf, name) is not None
    assert mmrlhf.RewardModel.__module__ == "mmrlhf.inference.reward_model"
    with pytest.raises(AttributeError, match="RewardModle"):
        _ = mmrlhf.RewardModle  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names(project: Path) -> None:
    """The imports under TYPE_CHECKING name each thing's home, as the lazy ones do."""
    tree = ast.parse((project / "mmrlhf" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert seen == mmrlhf._HOMES and {*seen, "__version__"} == set(mmrlhf.__all__)


def test_shards_are_a_sequence_of_groups(small_shards: Path, small_groups: list[mmrlhf.PreferenceGroup]) -> None:
    shards = mmrlhf.load_shards(small_shards)
    assert len(shards) == 14
    assert [group.key for group in shards] == [group.key for group in small_groups]
    assert shards[-1].key == small_groups[-1].key and shards[0].media == small_groups[0].media
    with pytest.raises(IndexError):
        _ = shards[14]
