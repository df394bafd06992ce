"""Checkpoint folders as strangers hand them over: the weights of a whole one, with parts gone, renamed or damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"


def copy_checkpoint(source: Path, folder: Path) -> Path:
    """A checkpoint of one's own to break."""
    shutil.copytree(source, folder)
    return folder


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Change a folder's tensors; what `change` returns is what the folder holds then."""
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    """Leave out the tensors whose names hold one of these."""
    return lambda tensors: {n: t for n, t in tensors.items() if not any(part in n for part in parts)}


def renamed(prefix: str) -> Callable[[Tensors], Tensors]:
    """Put a prefix before every name."""
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def halved(tensors: Tensors) -> Tensors:
    """Every second tensor."""
    return dict(list(sorted(tensors.items()))[::2])


def as_peft_saves(tensors: Tensors) -> Tensors:
    """Unmerged adapters: peft's prefix, base layers, and pairs of small matrices beside them."""
    found = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer.endswith("q_proj") and kind == "weight":
            found[f"base_model.model.{layer}.base_layer.weight"] = tensor
            found[f"base_model.model.{layer}.lora_A.default.weight"] = torch.zeros(2, tensor.shape[1])
            found[f"base_model.model.{layer}.lora_B.default.weight"] = torch.zeros(tensor.shape[0], 2)
        else:
            found[f"base_model.model.{name}"] = tensor
    return found


def reshaped(part: str) -> Callable[[Tensors], Tensors]:
    """One row more in the first tensor whose name holds this."""

    def change(tensors: Tensors) -> Tensors:
        name = next(name for name in sorted(tensors) if part in name)
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
        return tensors

    return change


def with_extra(name: str) -> Callable[[Tensors], Tensors]:
    """One tensor too many."""
    return lambda tensors: {**tensors, name: torch.ones(3)}


def cut(folder: Path, share: float = 0.7) -> Path:
    """A download that stopped early."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])
    return folder


def in_shards(folder: Path, *, present: int = 2) -> Path:
    """Two shards with an index, of which so many are there."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    halves = dict(zip(files, (names[::2], names[1::2]), strict=True))
    for file, members in list(halves.items())[:present]:
        save_file({name: tensors[name] for name in members}, folder / file, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, members in halves.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pickled(folder: Path) -> Path:
    """The same weights as torch saves them."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    return folder


def adapters_only(folder: Path) -> Path:
    """What peft's own save_pretrained leaves: adapters and their configuration, no model."""
    (folder / "config.json").unlink()
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
