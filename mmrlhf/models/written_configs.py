"""The configs of a written folder: with its weights' type, valid, and in the names that older readers know, too."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from mmrlhf.text import first_line

log = logging.getLogger(__name__)

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save_config(backbone: PreTrainedModel, folder: Path, dtype: torch.dtype | None) -> None:
    """Write config.json again with the type of the files, which is not that of the weights in memory."""
    if dtype is None:
        return
    configs: list[Any] = [backbone.config]
    configs += [
        sub for name in backbone.config.sub_configs if (sub := getattr(backbone.config, name, None)) is not None
    ]
    before = [config.dtype for config in configs]
    for config in configs:
        config.dtype = dtype
    backbone.config.save_pretrained(folder)
    for config, old in zip(configs, before, strict=True):
        config.dtype = old


def valid_generation(config: GenerationConfig) -> GenerationConfig:
    """The same settings of generation without those of sampling where it is greedy: readers refuse what has no use."""
    try:
        config.validate(strict=True)
        return config
    except ValueError as error:
        plain = copy.deepcopy(config)
        for name in _SAMPLING:
            setattr(plain, name, None)
        plain.validate(strict=True)
        log.info("generation_config: settings of sampling are left out, as it is greedy (%s)", first_line(error))
        return plain


def add_older_rotations(path: Path) -> None:
    """Say the rotary embedding's settings in the names of transformers 4.x, too, in which checkpoints are published.

    transformers 5 writes them as `rope_parameters` alone, of which 4.x reads nothing: it would take its own defaults.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    for config in (content, *(value for value in content.values() if isinstance(value, dict))):
        rope = config.get("rope_parameters")
        if isinstance(rope, dict):
            config.update(_older_rotations(rope))
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _older_rotations(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters`, of all layers or by kind of layer, as `rope_theta`, `rope_local_base_freq`, `rope_scaling`."""
    full = rope.get("full_attention", rope)
    found = {"rope_theta": full["rope_theta"]} if "rope_theta" in full else {}
    if "sliding_attention" in rope:
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    scaling = {name: value for name, value in full.items() if name != "rope_theta"}
    return found if scaling in ({}, {"rope_type": "default"}) else found | {"rope_scaling": scaling}


def plain_tokenizer_config(path: Path) -> None:
    """Leave out where the tokenizer was loaded from, and write special tokens so that older readers know them, too.

    transformers 5 writes a list as `extra_special_tokens`, which 4.x reads as a mapping of names; both read the older
    names, in which the checkpoints of most families are published.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only"):
        content.pop(name, None)
    if content.get("tokenizer_class") == "TokenizersBackend":  # the newer name of the same class
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(content.get("extra_special_tokens"), list):
        listed = content.pop("extra_special_tokens")
        if listed:
            content["additional_special_tokens"] = listed
        if content.get("model_specific_special_tokens"):
            content["extra_special_tokens"] = content["model_specific_special_tokens"]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
