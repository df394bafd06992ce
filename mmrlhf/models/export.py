"""Write and read plain Hugging Face folders: policies, and reward models with their head.

A policy folder is what `save_pretrained` writes for the checkpoint that training started from: its names, its number
type, its processor; so `from_pretrained`, vLLM and lmms-eval load it; beside them, `policy.json` says how media were
read. A reward model folder is the same with `score_head.safetensors` and `reward_model.json` (head, template, settings)
instead; a missing or unfitting head is an error, never a fresh one. Whatever is written is read back before anyone may
use it (`mmrlhf.models.promises`).
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from mmrlhf.errors import ModelError, UserError
from mmrlhf.files import expanded
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import HeadSettings, ScoreHead, build_head
from mmrlhf.models.hub import file_beside, format_bytes, free_bytes
from mmrlhf.models.load import load_backbone, stock_weights
from mmrlhf.models.promises import CARD_FILE, HEAD_FILE, check_policy_folder, check_reward_folder, read_card
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.weight_files import ADAPTER_WEIGHTS, BASE_DIGEST, POLICY_FILE, read_json, some, weights_digest
from mmrlhf.text import first_line

log = logging.getLogger(__name__)

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


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
    model.backbone.generation_config = _valid(model.backbone.generation_config)
    if as_adapters:
        weights = _adapter_weights(model, full)
        card = {**(card or {}), **_base_digest(base)}
    else:
        weights = _stored(model.backbone, _merged_weights(model, full, base, dtype), dtype)
    with _room_for(folder, weights):
        if as_adapters:
            _save_adapters(model, weights, folder, base)
        else:
            model.backbone.save_pretrained(folder, state_dict=weights)
        _save_config(model.backbone, folder, dtype)
        _plain_rotations(folder / "config.json")
        processor.save_pretrained(folder)
        _plain_tokenizer_config(folder / "tokenizer_config.json")
        if card is not None:
            (folder / POLICY_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    check_policy_folder(folder, dtype=dtype)


def read_policy_card(folder: str | Path) -> dict[str, Any]:
    """What a policy's folder, or its repository, says of how it was trained; empty for a stock checkpoint."""
    file = file_beside(folder, POLICY_FILE)
    return {} if file is None else read_json(file)


def save_reward_model(
    model: PackedModel,
    processor: ProcessorMixin,
    folder: str | Path,
    *,
    card: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    as_adapters: bool = False,
) -> None:
    """Write a reward model: the backbone's folder, the score head (float32), and a card that says how it is asked.

    Args:
        card: JSON-able facts needed to ask it again (critique kind, instruction, media settings).
        state, dtype, base, as_adapters: as of `save_policy`, which also says what is raised.
    """
    head = model.score_head
    if not isinstance(head, ScoreHead):
        raise ModelError("this model has no score head to save")
    save_policy(model, processor, folder, state=state, dtype=dtype, base=base, as_adapters=as_adapters)
    full = state if state is not None else model.state_dict()
    prefix = "score_head."
    weights = {name[len(prefix) :]: value.contiguous() for name, value in full.items() if name.startswith(prefix)}
    _check_finite(weights, "float32")
    facts = {"head": head.kind, "width": head.out.in_features, "dimensions": list(head.dimensions), **card}
    with _room_for(Path(folder), weights):
        save_file(weights, Path(folder) / HEAD_FILE)
        (Path(folder) / CARD_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    check_reward_folder(folder, dtype=dtype)


def load_reward_model(
    folder: str | Path, settings: ModelSettings
) -> tuple[PackedModel, ProcessorMixin, dict[str, Any]]:
    """Read a reward model from its folder or by its hub id: model with its trained head, processor, and the card.

    Raises:
        ModelError: where the head or its card is missing or does not fit, or the model's own weights do not.
    """
    card = read_card(folder)
    backbone, processor = load_backbone(folder, settings)
    head = load_head(folder, card, width=backbone.config.get_text_config().hidden_size)
    return PackedModel(backbone, settings, head), processor, card


def load_head(folder: str | Path, card: Mapping[str, Any], *, width: int) -> ScoreHead:
    """Read a reward model's trained score head for hidden states of a width; ModelError where it does not fit."""
    file = file_beside(folder, HEAD_FILE)
    assert file is not None, "whoever has read the card has seen the head"
    if card["width"] != width:
        raise ModelError(
            "the score head does not fit the model beside it",
            where=file.with_name(CARD_FILE),
            given=f"a head for width {card['width']}",
            expected=f"width {width}, as the model's hidden states have",
        )
    head = build_head(card["head"], card["width"], dimensions=card["dimensions"])
    try:
        head.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ModelError("the score head does not fit its card", where=str(folder), given=str(error)) from error
    _check_finite(head.state_dict(), "float32")
    return head


def starting_head(settings: HeadSettings, checkpoint: str | Path, width: int) -> ScoreHead:
    """The head that training starts with: the checkpoint's own where it has one, else a fresh one; the log says which.

    Args:
        checkpoint: folder or hub id that the backbone comes from; width: of its hidden states.

    Raises:
        ModelError: the checkpoint's head is damaged, or of another kind or other dimensions than the settings'.
    """
    trained = any(file_beside(checkpoint, name) is not None for name in (CARD_FILE, HEAD_FILE))
    if settings.fresh or not trained:
        why = "as head.fresh asks; the trained one is left out" if trained else "as the checkpoint has none"
        log.info("%s: the score head starts fresh, %s", checkpoint, why)
        return settings.build(width)
    card = read_card(checkpoint)
    if (card["head"], tuple(card["dimensions"])) != (settings.kind, tuple(settings.dimensions)):
        raise ModelError(
            "this checkpoint has a trained score head of another kind than the one that is to be trained",
            where=f"{CARD_FILE} of {checkpoint}",
            given=f"kind {card['head']}, dimensions {card['dimensions']}",
            expected=f"kind {settings.kind}, dimensions {list(settings.dimensions)}",
            fix=f"model.head={card['head']} with its dimensions goes on with it; "
            "stages.reward.head.fresh=true begins with a new one",
        )
    log.info("%s: its trained score head is trained further", checkpoint)
    head = load_head(checkpoint, card, width=width)
    head.dropout.p = settings.dropout
    return head


def _adapter_weights(model: PackedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters under peft's names, which it has for the stock model, too."""
    if model.adapters is None:
        raise ModelError("this model has no adapters to save", expected="model.settings.language=lora")
    from peft import get_peft_model_state_dict  # as in `trainable.with_adapters`

    prefix = "backbone."
    named = {f"base_model.model.{n.removeprefix(prefix)}": v for n, v in state.items() if n.startswith(prefix)}
    found = get_peft_model_state_dict(model.adapters, state_dict=named, save_embedding_layers=False)
    found = {name: value.detach().contiguous() for name, value in found.items()}
    _check_finite(found, "float32")
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
    _check_finite(stored, str(dtype or "its own type").removeprefix("torch."))
    return stored


def _check_finite(weights: Mapping[str, Tensor], kind: str) -> None:
    wrong = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise ModelError(
            "these weights are not finite, so this is no model",
            where=some(wrong),
            given=f"NaN or infinity in {len(wrong)} of {len(weights)} tensors, as {kind}",
            expected="numbers",
            fix="train again from the last good checkpoint with a lower learning rate; see the loss curve",
        )


def _save_config(backbone: PreTrainedModel, folder: Path, dtype: torch.dtype | None) -> None:
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


def _valid(config: GenerationConfig) -> GenerationConfig:
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


def _plain_rotations(path: Path) -> None:
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


def _plain_tokenizer_config(path: Path) -> None:
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


@contextmanager
def _room_for(folder: Path, weights: Mapping[str, Tensor]) -> Iterator[None]:
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
