"""What differs between model families, read off the stock model itself wherever it says it.

A family needs no code of ours as long as its language model takes a 4-D attention mask and explicit position ids, and
keeps its parts under one of the usual names. What is left are the position function of M-RoPE models, LLaVA-style
`batch_num_images`, Gemma's `token_type_ids`, the masks of `mmrlhf.models.masks`, and refusals for layers that a packed
row would silently get wrong.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel

from mmrlhf.errors import ModelError
from mmrlhf.models.attention import NAME as PACKED
from mmrlhf.models.masks import FULL, SLIDING, attention_pattern
from mmrlhf.models.thumbnails import thumbnail_features
from mmrlhf.tensors import THUMBNAILS

# The names under which transformers itself looks for an image encoder and a decoder.
VISION_NAMES = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")
LANGUAGE_NAMES = ("language_model", "text_model", "decoder", "text_decoder")
# Projectors that lie inside the vision tower (Qwen-VL).
_INNER_PROJECTORS = ("visual.merger", "visual.deepstack_merger_list")


def base_model(backbone: PreTrainedModel) -> nn.Module:
    """The model without its language-model head: what returns hidden states."""
    return backbone.base_model


def parts(backbone: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
    """Every parameter of a backbone under `vision`, `projector` or `language`.

    Whatever lies between the vision tower and the language model is the projector; the head counts as language.
    """
    found: dict[str, list[nn.Parameter]] = {"vision": [], "projector": [], "language": []}
    output = backbone.get_output_embeddings()
    head = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    for name, parameter in backbone.named_parameters():
        if _lies_in(name, _INNER_PROJECTORS):
            found["projector"].append(parameter)
        elif _lies_in(name, VISION_NAMES):
            found["vision"].append(parameter)
        elif _lies_in(name, LANGUAGE_NAMES) or id(parameter) in head:
            found["language"].append(parameter)
        else:
            found["projector"].append(parameter)
    return found


def _lies_in(name: str, modules: Sequence[str]) -> bool:
    return any(f".{module}." in f".{name}" for module in modules)


def vision_modules(backbone: PreTrainedModel) -> Iterator[nn.Module]:
    """The vision tower(s) of a backbone."""
    for name in VISION_NAMES:
        module = getattr(base_model(backbone), name, None)
        if isinstance(module, nn.Module):
            yield module


def language_layers(backbone: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of the language model: the units of sharding and checkpointing.

    Raises:
        ModelError: where no list of layers is found under the usual names.
    """
    for name in LANGUAGE_NAMES:
        language = getattr(base_model(backbone), name, None)
        # Some families keep a whole causal language model there, with its decoder under `model`.
        for owner in (language, getattr(language, "model", None)):
            layers = getattr(owner, "layers", None)
            if isinstance(layers, nn.ModuleList):
                return layers
    raise ModelError(
        "no decoder layers found in this model",
        given=type(backbone).__name__,
        expected=f"a language model under {' or '.join(LANGUAGE_NAMES)} with a list `layers`",
    )


def vision_layers(backbone: PreTrainedModel) -> Iterator[nn.Module]:
    """The layers of the vision tower(s): of each, the members of its largest list of modules, projectors left out."""
    own = set(parts(backbone)["vision"])
    for tower in vision_modules(backbone):
        lists = [
            each for each in tower.modules() if isinstance(each, nn.ModuleList) and own.issuperset(each.parameters())
        ]
        yield from max(lists, key=lambda each: sum(p.numel() for p in each.parameters()), default=())


def adaptable_layers(backbone: PreTrainedModel, part: str) -> list[str]:
    """Names of the linear maps of a part (see `parts`) that LoRA adapts: of the language model inside its layers only.

    Routers of experts are left alone, and so is what torch's own attention module reads without calling it.
    """
    own = {id(parameter) for parameter in parts(backbone)[part]}
    if part == "language":
        own = {id(parameter) for layer in language_layers(backbone) for parameter in layer.parameters()}
    return [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
        and id(module.weight) in own
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and name.rpartition(".")[2] not in ("gate", "router")
    ]


def check_packable(backbone: PreTrainedModel) -> str | None:
    """Say why this model's layers cannot take a packed row, or None where they can."""
    config: Any = backbone.config.get_text_config()
    other = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if other:
        return f"it has layers that are not attention over tokens: {', '.join(sorted(other))}"
    implementation = getattr(config, "_attn_implementation", "sdpa")
    if implementation not in ("sdpa", "eager", PACKED):
        return f"attention '{implementation}' ignores the mask of a packed row"
    return None


def media_arguments(
    backbone: PreTrainedModel, ids: Tensor, media: Sequence[Mapping[str, Tensor]], num_images: Sequence[int]
) -> dict[str, Any]:
    """What the model's forward takes beside ids, mask and positions: the groups' media, joined along dimension 0.

    Args:
        ids: the tokens (B, L) of the call, for models that ask which of them are pictures.
        media: processor tensors of each group; num_images: pictures of each group.
    """
    arguments: dict[str, Any] = joined_media(backbone, media, num_images) | token_types(backbone, ids)
    thumbnails = [group[THUMBNAILS] for group in media if THUMBNAILS in group]
    if thumbnails:
        arguments["mm_encoder_outputs"] = thumbnail_features(base_model(backbone), torch.cat(thumbnails))
    return arguments


def joined_media(
    backbone: PreTrainedModel, media: Sequence[Mapping[str, Tensor]], num_images: Sequence[int]
) -> dict[str, Tensor]:
    """The media among `media_arguments`."""
    accepted = inspect.signature(base_model(backbone).forward).parameters
    joined: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for group in media for name in group):
        if name in accepted and name != "batch_num_images":
            joined[name] = _join([group[name] for group in media if name in group])
    if "batch_num_images" in accepted and "pixel_values" in joined:
        # LLaVA-OneVision turns crops off in samples of several images, so a row must say how many each group has.
        joined["batch_num_images"] = torch.tensor([count for count in num_images if count])
    return joined


def token_types(backbone: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """Which tokens (B, L) are pictures, for models that ask."""
    image_token = attention_pattern(backbone.config).image_token
    return {} if image_token is None else {"token_type_ids": (ids == image_token).long()}


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along dim 0; different numbers of crops or picture sizes are padded with zeros at the end.

    Models drop crops that a picture does not have, and leave out padded pixels by mask or size.
    """
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [most - size for most, size in zip(largest, tensor.shape[1:], strict=True)]
        padding = [amount for missed in reversed(missing) for amount in (0, missed)]
        padded.append(nn.functional.pad(tensor, padding) if any(missing) else tensor)
    return torch.cat(padded, dim=0)


def positions_for(backbone: PreTrainedModel) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    """The family's own position function, (ids (T,), media) -> (A, T), free of the weights so that workers can hold it.

    Plain rotary models count 0..T-1 (A = 1). M-RoPE families (Qwen-VL) expose `get_rope_index` (A = 3), which is asked
    on a weightless copy of the model.
    """
    base = base_model(backbone)
    if not hasattr(base, "get_rope_index"):
        return _count
    config = copy.deepcopy(backbone.config)
    config.get_text_config().num_hidden_layers = 1
    if getattr(config.get_text_config(), "layer_types", None):
        config.get_text_config().layer_types = config.get_text_config().layer_types[:1]
    with torch.device("meta"):
        return _RopeIndex(type(base)(config))


def _count(ids: Tensor, media: Mapping[str, Tensor]) -> Tensor:
    return torch.arange(len(ids))[None]


def media_kinds(config: Any, ids: Tensor) -> Tensor:
    """Which tokens are pictures (1), video frames (2), or text (0), in the shape of `ids`."""
    return (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()


class _RopeIndex:
    """Calls a weightless model's `get_rope_index` for one sequence."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.accepted = inspect.signature(model.get_rope_index).parameters

    def __call__(self, ids: Tensor, media: Mapping[str, Tensor]) -> Tensor:
        kinds = media_kinds(self.model.config, ids)
        if not kinds.any():
            return torch.arange(len(ids))[None].expand(3, -1)
        arguments = {name: tensor for name, tensor in media.items() if name in self.accepted}
        if "mm_token_type_ids" in self.accepted:
            arguments["mm_token_type_ids"] = kinds[None]
        positions, _ = self.model.get_rope_index(ids[None], **arguments)
        return positions[:, 0]
