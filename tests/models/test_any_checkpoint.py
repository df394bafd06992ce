"""Checkpoint folders with any of their small files changed: a config, or a user's error that names the folder."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from stand_ins.any_damage import Change, changed, changes
from stand_ins.broken_checkpoints import copy_checkpoint
from transformers import LlavaConfig

from mmrlhf.errors import ModelError, UserError
from mmrlhf.models.load import check_folder, load_config, stored_dtype
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.weight_files import read_headers


@cache
def files() -> dict[str, bytes]:
    weights = save({"a.weight": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.bfloat16)}, {"format": "pt"})
    return {"config.json": LlavaConfig().to_json_string().encode(), "model.safetensors": weights}


@settings(max_examples=60)
@given(steps=changes, name=st.sampled_from(["config.json", "model.safetensors"]))
def test_any_damage(steps: list[Change], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for other, data in files().items():
            (Path(folder) / other).write_bytes(changed(data, steps) if other == name else data)
        for read in (read_headers, load_config, stored_dtype):
            try:
                read(Path(folder))
            except UserError as error:
                assert folder in str(error)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
)
keys = st.sampled_from(
    ["model_type", "text_config", "vision_config", "architectures", "dtype", "image_token_index", "auto_map"]
)


@settings(max_examples=60)
@given(content=anything | st.dictionaries(keys, anything | st.sampled_from(["llava", "qwen2"]), max_size=4))
def test_any_config(content: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            load_config(Path(folder))
        except UserError as error:
            assert folder in str(error)


def _set(content: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *steps, last = path.split(".")
    inner = content
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return content


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("config.json", "text_config.num_attention_heads", 10**30),
        ("config.json", "text_config.hidden_size", 0),
        ("config.json", "vision_config.hidden_size", 0),
        ("config.json", "vision_config.patch_size", 0),
        ("config.json", "text_config.pad_token_id", 10**30),
        ("config.json", "text_config.rope_parameters.rope_theta", 10**30),
        ("config.json", "quantization_config", {"quant_method": "awq"}),
        ("tokenizer_config.json", "model_max_length", "x"),
        ("tokenizer_config.json", "model_max_length", [[]]),
        ("tokenizer_config.json", "model_max_length", {}),
    ],
)
def test_numbers_that_no_model_has(
    tiny_folders: dict[str, Path], tmp_path: Path, file: str, path: str, value: object
) -> None:
    """A division by zero, a number that no tensor holds, a failed assertion: found by changing every value there."""
    folder = copy_checkpoint(tiny_folders["llava_onevision"], tmp_path / "broken")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(_set(content, path, value)))
    with pytest.raises(ModelError, match=str(folder)):
        check_folder(folder, ModelSettings())
