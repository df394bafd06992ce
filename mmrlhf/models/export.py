"""Write and read plain Hugging Face folders: policies, and reward models with their head.

A policy folder is exactly what `save_pretrained` writes, so `from_pretrained`, vLLM and lmms-eval load it. A reward
model folder is the same plus `score_head.safetensors` and `reward_model.json` (head, template, settings); a missing or
unfitting head is an error, never a fresh one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from mmrlhf.errors import ModelError
from mmrlhf.models.families import base_model
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import ScoreHead, build_head
from mmrlhf.models.load import ModelSettings, load_backbone

HEAD_FILE = "score_head.safetensors"
CARD_FILE = "reward_model.json"


def save_policy(
    model: PackedModel,
    processor: ProcessorMixin,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the backbone (adapters merged) and its processor as a Hugging Face folder.

    Args:
        state: full, unsharded `state_dict` of the PackedModel, for models whose own parameters are shards.
    """
    weights = _merged_weights(model, state if state is not None else model.state_dict())
    plain = _plain_copy(model.backbone, weights)
    plain.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_reward_model(
    model: PackedModel,
    processor: ProcessorMixin,
    folder: str | Path,
    *,
    card: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a reward model: the backbone's folder, the score head, and a card that says how it is asked.

    Args:
        card: JSON-able facts needed to ask it again (critique kind, instruction, media settings).
    """
    head = model.score_head
    if not isinstance(head, ScoreHead):
        raise ModelError("this model has no score head to save")
    save_policy(model, processor, folder, state=state)
    full = state if state is not None else model.state_dict()
    prefix = "score_head."
    weights = {name[len(prefix) :]: value.contiguous() for name, value in full.items() if name.startswith(prefix)}
    save_file(weights, Path(folder) / HEAD_FILE)
    facts = {"head": head.kind, "width": head.out.in_features, "dimensions": list(head.dimensions), **card}
    (Path(folder) / CARD_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_reward_model(
    folder: str | Path, settings: ModelSettings
) -> tuple[PackedModel, ProcessorMixin, dict[str, Any]]:
    """Read a reward model folder: model with its trained head, processor, and the card.

    Raises:
        ModelError: where the head or its card is missing or does not fit.
    """
    folder = Path(folder)
    for name in (CARD_FILE, HEAD_FILE):
        if not (folder / name).is_file():
            raise ModelError(
                "this folder holds no trained score head",
                where=str(folder),
                given=f"no {name}",
                expected="a folder written by the reward stage",
                fix="train one (`python run.py stage=reward`), or give another inputs.reward_model",
            )
    card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    backbone, processor = load_backbone(folder, settings)
    head = build_head(card["head"], card["width"], dimensions=card["dimensions"])
    try:
        head.load_state_dict(load_file(folder / HEAD_FILE))
    except RuntimeError as error:
        raise ModelError("the score head does not fit its card", where=str(folder), given=str(error)) from error
    return PackedModel(backbone, settings, head), processor, card


def _merged_weights(model: PackedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights under their stock names, with LoRA updates added: W + scaling * B A."""
    prefix = "backbone."
    backbone = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    merged = {}
    for name, value in backbone.items():
        if ".lora_" in name:
            continue
        stock = name.replace(".base_layer.", ".")
        if stock != name and stock.endswith(".weight"):
            module = stock.removesuffix(".weight")
            down = backbone[f"{module}.lora_A.default.weight"]
            up = backbone[f"{module}.lora_B.default.weight"]
            scaling = model.backbone.get_submodule(module).scaling["default"]  # type: ignore[union-attr, index]
            value = value + (scaling * (up @ down)).to(value.dtype)
        merged[stock] = value
    return merged


def _plain_copy(backbone: PreTrainedModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A stock model of the same class that holds these weights and no adapters."""
    with torch.device("meta"):
        plain = type(backbone)(backbone.config)
    missing, unexpected = plain.load_state_dict(dict(weights), strict=False, assign=True)
    plain.tie_weights()
    head: nn.Module | None = plain.get_output_embeddings()
    tied = {"lm_head.weight"} if head is not None else set()
    if unexpected or set(missing) - tied:
        raise ModelError(
            "the trained weights do not fit the stock model",
            given=f"missing {sorted(set(missing) - tied)[:3]}, unexpected {sorted(unexpected)[:3]}",
        )
    plain.generation_config = backbone.generation_config
    base_model(plain)
    return plain
