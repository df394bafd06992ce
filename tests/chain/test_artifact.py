"""What the record of an artefact says of it, and a record that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmrlhf.chain.artifact import Recipe
from mmrlhf.chain.store import Store
from mmrlhf.errors import DataError

RECIPE = Recipe("pack", "0123456789abcdef" * 4, {"size": 3}, {"world": "f" * 64})


def test_the_record_says_what_made_it(tmp_path: Path) -> None:
    folder = Store(tmp_path).build(RECIPE, lambda out: {"groups": 7}).folder
    record = json.loads((folder / "artifact.json").read_text())
    assert record["settings"] == {"size": 3} and record["inputs"] == RECIPE.inputs
    assert record["fingerprint"] == RECIPE.fingerprint and record["stage"] == "pack"
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(record["git"]) == {"commit", "edited"}
    assert [item.name for item in folder.iterdir() if item.suffix == ".part"] == []


def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = Store(tmp_path).build(RECIPE, lambda out: {"groups": 7}).folder
    (folder / "artifact.json").write_text('{"fingerprint": ')
    with pytest.raises(DataError, match="artifact.json"):
        Store(tmp_path).find(RECIPE)
