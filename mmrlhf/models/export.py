"""Write plain Hugging Face folders: what `save_pretrained` writes for the checkpoint that training started from.

Its names, its number type, its processor; so `from_pretrained`, vLLM and lmms-eval load it; beside them, `policy.json`
says how media were read. Whatever is written is read back before anyone may use it (`mmrlhf.models.promises`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from mmrlhf.errors import ModelError, UserError
from mmrlhf.files import expanded
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.hub import file_beside, format_bytes, free_bytes
from mmrlhf.models.load import stock_weights
from mmrlhf.models.promises import check_policy_folder
from mmrlhf.models.weight_files import ADAPTER_WEIGHTS, BASE_DIGEST, POLICY_FILE, read_json, some, weights_digest
from mmrlhf.models.written_configs import add_older_rotations, plain_tokenizer_config, save_config, valid_generation


def save_policy(
    model: PackedModel,
    processor: ProcessorMixin,
    folder: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    as_adapters: bool = False,
) -> None:
    """Write the backbone (adapters merged) and its processor as a Hugging Face folder, and read it back.

    Args:
        card: JSON-able facts needed to ask it as it was trained (media settings), for `policy.json`.
        state: full, unsharded `state_dict` of the PackedModel, for models whose own parameters are shards.
        dtype: number type of the files, as the base's (`mmrlhf.models.load.stored_dtype`); None: as the weights are.
        base: the checkpoint that it was loaded from, whose weights are needed where `settings.weights` rounded them,
            and whose name adapters go by.
        as_adapters: write only the adapters, as peft does, with config.json and processor beside them.

    Raises:
        ModelError: a weight that is not finite, or files that are not what was written.
        UserError: no room, or no permission to write.
    """
    full, folder = state if state is not None else model.state_dict(), Path(folder)
    model.backbone.generation_config = valid_generation(model.backbone.generation_config)
    if as_adapters:
        weights = _adapter_weights(model, full)
        card = {**(card or {}), **_base_digest(base)}
    else:
        weights = _stored(model.backbone, _merged_weights(model, full, base, dtype), dtype)
    with room_for(folder, weights):
        if as_adapters:
            _save_adapters(model, weights, folder, base)
        else:
            model.backbone.save_pretrained(folder, state_dict=weights)
        save_config(model.backbone, folder, dtype)
        add_older_rotations(folder / "config.json")
        processor.save_pretrained(folder)
        plain_tokenizer_config(folder / "tokenizer_config.json")
        if card is not None:
            (folder / POLICY_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    check_policy_folder(folder, dtype=dtype)


def read_policy_card(folder: str | Path) -> dict[str, Any]:
    """What a policy's folder, or its repository, says of how it was trained; empty for a stock checkpoint."""
    file = file_beside(folder, POLICY_FILE)
    return {} if file is None else read_json(file)


def _adapter_weights(model: PackedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters under peft's names, which it has for the stock model, too."""
    if model.adapters is None:
        raise ModelError("this model has no adapters to save", expected="model.settings.language=lora")
    from peft import get_peft_model_state_dict  # as in `trainable.with_adapters`

    prefix = "backbone."
    named = {f"base_model.model.{n.removeprefix(prefix)}": v for n, v in state.items() if n.startswith(prefix)}
    found = get_peft_model_state_dict(model.adapters, state_dict=named, save_embedding_layers=False)
    found = {name: value.detach().contiguous() for name, value in found.items()}
    check_finite(found, "float32")
    return found


def _save_adapters(model: PackedModel, weights: Mapping[str, Tensor], folder: Path, base: str | Path | None) -> None:
    """Write adapters as peft does, and the base's config, by which the folder is known as a model."""
    assert base is not None, "adapters without a base are of no use"
    settings = copy.copy(model.adapters.peft_config["default"])
    settings.base_model_name_or_path = str(expanded(base).resolve()) if expanded(base).exists() else str(base)
    settings.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(str(folder))
    save_file(dict(weights), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    model.backbone.config.save_pretrained(folder)
    if model.backbone.generation_config is not None:
        model.backbone.generation_config.save_pretrained(folder)


def _base_digest(base: str | Path | None) -> dict[str, str]:
    """What tells another base in the same place from the one that adapters were trained on; nothing for a hub id."""
    folder = None if base is None else expanded(base)
    return {} if folder is None or not folder.is_dir() else {BASE_DIGEST: weights_digest(folder)}


def _merged_weights(
    model: PackedModel, state: Mapping[str, Tensor], base: str | Path | None, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The backbone's weights under their stock names, with LoRA updates added: W + scaling * B A.

    Where W was stored in fewer bits than the checkpoint has, it is the checkpoint's: updates belong to it, as they do
    where peft loads them onto the stock model.
    """
    prefix = "backbone."
    backbone = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    stock = {}
    if model.settings.weights != "float32":
        if base is None:
            raise ModelError("weights that were rounded as they were loaded are exported from their base", given="none")
        stock = stock_weights(base, dtype or torch.float32)
        trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    merged = {}
    for name in [name for name in backbone if ".lora_" not in name]:
        plain = name.replace(".base_layer.", ".")
        if stock and plain not in stock:
            continue  # scales of quantised weights
        value = stock[plain] if stock and name not in trained else backbone[name]
        if plain != name and plain.endswith(".weight"):
            value = _updated(value, model.backbone.get_submodule(plain.removesuffix(".weight")), backbone, plain)
        merged[plain] = value
    return merged


def _updated(value: Tensor, layer: Any, state: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight with its adapter's update, summed in float32."""
    module = name.removesuffix(".weight")
    down, up = (state[f"{module}.lora_{side}.default.weight"] for side in "AB")
    updated = value.float() + layer.scaling["default"] * (up @ down).to(value.device)
    magnitude = state.get(f"{module}.lora_magnitude_vector.default.weight")
    if magnitude is not None:  # DoRA
        updated = updated * (magnitude.to(value.device) / updated.norm(dim=1))[:, None]
    return updated.to(value.dtype)


def _stored(backbone: PreTrainedModel, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights as they are written: in their type, finite, and tied ones as one tensor under each of their names."""
    owner: dict[int, str] = {}
    stored: dict[str, Tensor] = {}
    shared = {
        name.replace(".base_layer.", "."): owner.setdefault(id(parameter), name.replace(".base_layer.", "."))
        for name, parameter in backbone.named_parameters(remove_duplicate=False)
    }
    for name, value in weights.items():
        first = shared.get(name, name)
        if first in stored:
            stored[name] = stored[first]
        else:
            stored[name] = value.detach().to(dtype) if dtype is not None and value.is_floating_point() else value
    check_finite(stored, str(dtype or "its own type").removeprefix("torch."))
    return stored


def check_finite(weights: Mapping[str, Tensor], kind: str) -> None:
    """Raise ModelError where a weight is NaN or infinite in the number type (kind) that it is written in."""
    wrong = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise ModelError(
            "these weights are not finite, so this is no model",
            where=some(wrong),
            given=f"NaN or infinity in {len(wrong)} of {len(weights)} tensors, as {kind}",
            expected="numbers",
            fix="train again from the last good checkpoint with a lower learning rate; see the loss curve",
        )


@contextmanager
def room_for(folder: Path, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Turn a full disk and a folder that cannot be written into an error that says how much is needed."""
    distinct = {id(value): value for value in weights.values()}.values()
    needed = sum(value.numel() * value.element_size() for value in distinct)
    free = free_bytes(folder)
    facts = {"where": folder, "expected": f"{format_bytes(needed)} for the weights, and permission to write"}
    if needed > free:
        raise UserError(
            "the disk is too full for this model",
            given=f"{format_bytes(free)} free",
            fix="free some room and run the same command again: training is not repeated",
            **facts,
        )
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            "the model could not be written",
            given=f"{error}; {format_bytes(free_bytes(folder))} free",
            fix="free some room or give a folder that can be written (paths.artifacts), and run the same command again",
            **facts,
        ) from error
