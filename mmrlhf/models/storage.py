"""How weights lie in memory: what trains in float32, what does not as `model.settings.weights` says.

A checkpoint is read tensor by tensor, and each tensor becomes what it is stored as before the next one is read, so
loading needs hardly more memory than the loaded model (`benchmarks/loading_memory.py`). transformers lets a quantizer
of one's own say what each tensor becomes; `StorageQuantizer` is that, for whole types as well as for 4 and 8 bits.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ConversionOps, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mmrlhf.errors import ConfigError
from mmrlhf.models.families import adaptable_layers, language_layers, parts
from mmrlhf.models.settings import PARTS, QUANTIZED, ModelSettings

log = logging.getLogger(__name__)

_METHOD = "mmrlhf_storage"
_C_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_storage(settings: ModelSettings) -> None:
    """Refuse weights that cannot be had, before anything is loaded: a package that is missing, parts that train.

    Raises:
        ConfigError: says what to set.
    """
    weights, where = settings.weights, "model.settings.weights"
    trained = [part for part in PARTS if getattr(settings, part) == "full"]
    if weights == "bf16" and settings.precision != "bf16":
        raise ConfigError(
            "weights in bf16 are multiplied in bf16",
            where=where,
            given=f"weights=bf16, precision={settings.precision}",
            expected="precision=bf16, or weights=float32",
        )
    if weights not in QUANTIZED:
        return
    if weights == "int8" and settings.lora_dora:
        raise ConfigError(
            "DoRA needs the length of each weight's rows, which peft reads in 4 bits and not in 8",
            where=f"{where}, model.settings.lora_dora",
            given="weights=int8, lora_dora=true",
            expected="weights=nf4, bf16 or float32 with DoRA",
        )
    both = [part for part in settings.quantized_parts if part in trained]
    if both:
        raise ConfigError(
            f"what is stored in {weights} cannot train in full: its numbers are too coarse for an update",
            where=f"{where}, {', '.join(f'model.settings.{part}' for part in both)}",
            given=f"weights={weights}, {', '.join(f'{part}=full' for part in both)}",
            expected="lora or frozen",
            fix=f"model.settings.{both[0]}=lora (QLoRA), or model.settings.weights=bf16",
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "weights in 4 and 8 bits need another package",
            where=where,
            given=f"{weights}, and bitsandbytes is not installed",
            expected="the package bitsandbytes",
            fix="pip install 'mmrlhf[quantized]', or model.settings.weights=bf16",
        )


def storage_of(backbone: PreTrainedModel, settings: ModelSettings) -> dict[str, torch.dtype | str]:
    """What each parameter is stored as: a type, or `nf4` or `int8`; parameters that are not named are float32.

    float32 are what trains in full, vectors, and what is added to the residual stream (position embeddings): rounding
    those would change numbers that docs/precision.md promises in float32. Else matrices, and the token embedding where
    it is a plain table, are bf16 wherever the computation is. Quantised are the linear maps that LoRA could adapt, of
    the parts in `settings.quantized_parts`.

    Raises:
        ConfigError: a part that should be quantised has no linear map.
    """
    if settings.weights == "float32":
        return {}
    whole = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    rounded = _multiplied(backbone) if whole is torch.bfloat16 else set()
    frozen = {id(p) for part, own in parts(backbone).items() if getattr(settings, part) != "full" for p in own}
    found: dict[str, torch.dtype | str] = {
        name: whole
        for name, parameter in backbone.named_parameters(remove_duplicate=False)
        if id(parameter) in rounded & frozen
    }
    if settings.weights in QUANTIZED:
        for part in settings.quantized_parts:
            found |= {f"{layer}.weight": settings.weights for layer in _quantizable(backbone, part, settings.weights)}
    return found


def _multiplied(backbone: PreTrainedModel) -> set[int]:
    """What matrix products round to bf16 anyway, and the token embedding, whose rows become float32 again."""
    found = {id(module.weight) for module in backbone.modules() if type(module) in _PRODUCTS}
    found |= {id(p) for layer in language_layers(backbone) for p in layer.parameters() if p.ndim >= 2}
    # a stock model takes the type of its first parameter for its own and casts pictures to it: that one stays
    found -= {id(next(module.parameters())) for module in backbone.modules() if isinstance(module, PreTrainedModel)}
    embedding, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    if head is not None:
        found.add(id(head.weight))
    if type(embedding) is nn.Embedding:
        found.add(id(embedding.weight))
    elif head is not None and _are_tied(backbone, head):
        found.discard(id(head.weight))  # scaled as it is looked up: the scale would be rounded
    return found


def _are_tied(backbone: PreTrainedModel, head: nn.Module) -> bool:
    """Whether head and embedding are one tensor, also on a model whose weights are not there yet."""
    tied = bool(getattr(backbone.config.get_text_config(), "tie_word_embeddings", False))
    return tied or head.weight is backbone.get_input_embeddings().weight


def _quantizable(backbone: PreTrainedModel, part: str, weights: str) -> list[str]:
    names = [name for name in adaptable_layers(backbone, part) if type(backbone.get_submodule(name)) is nn.Linear]
    if not names:
        raise ConfigError(
            f"the {part} of this model has no linear map that could be quantised",
            where="model.settings.quantized_parts",
            given=f"{part}, weights={weights}",
            expected=", ".join(each for each in PARTS if each != part and adaptable_layers(backbone, each)),
            fix=f"leave {part} out of model.settings.quantized_parts",
        )
    return names


def stored_bytes(backbone: PreTrainedModel, storage: Mapping[str, torch.dtype | str], name: str) -> float:
    """Bytes that a parameter takes once it is stored, the scales of quantised ones included."""
    parameter = backbone.get_parameter(name)
    kind = storage.get(name, torch.float32)
    if kind == "nf4":  # a scale of 8 bits for each 64 numbers, and one of 32 for each 256 scales
        return parameter.numel() * (0.5 + 1 / 64 + 4 / (64 * 256))
    if kind == "int8":
        return parameter.numel() + 4 * parameter.shape[0]
    assert isinstance(kind, torch.dtype)
    return parameter.numel() * kind.itemsize


@register_quantization_config(_METHOD)
class StorageConfig(QuantizationConfigMixin):
    """What `from_pretrained` hands on to the quantizer."""

    def __init__(self, settings: ModelSettings | None = None, **_: Any) -> None:
        self.quant_method: Any = _METHOD
        self.settings = settings or ModelSettings()


@register_quantizer(_METHOD)
class StorageQuantizer(HfQuantizer):
    """Gives each parameter of the empty model the type that its tensor is read into, and quantises as it is read."""

    quantization_config: Any

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        storage = storage_of(model, self.quantization_config.settings)
        for name, kind in storage.items():
            if isinstance(kind, torch.dtype):
                parameter = model.get_parameter(name)
                parameter.data = parameter.data.to(kind)
            else:
                _replace(model, name.removesuffix(".weight"), kind)
        self.quantized = {name for name, kind in storage.items() if isinstance(kind, str)}
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether `Quantize` makes a parameter of a tensor."""
        return param_name in self.quantized

    def get_quantize_ops(self) -> ConversionOps:
        """What makes quantised parameters of tensors."""
        return _Quantize()

    def is_serializable(self) -> bool:
        """No: exports are made of the base's own weights."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Yes, by adapters."""
        return True


class _Quantize(ConversionOps):
    def convert(self, input_dict: dict[str, Any], model: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        found = {}
        for name, value in input_dict.items():
            weight: Tensor = value[0] if isinstance(value, list) else value
            layer = model.get_submodule(name.removesuffix(".weight"))
            if weight.shape != (layer.out_features, layer.in_features):
                raise ValueError(f"{name} is {tuple(weight.shape)}, not {(layer.out_features, layer.in_features)}")
            found[name] = layer.quantize(weight)
            del weight, value
        _return_freed()
        return found


def _return_freed() -> None:
    """Give freed memory back to the system: glibc keeps what whole weights took, several times what is left of them."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _replace(model: PreTrainedModel, name: str, kind: str) -> None:
    from mmrlhf.models.quantized import LAYERS  # needs the extra `quantized`

    old: Any = model.get_submodule(name)
    with torch.device("meta"):
        new = LAYERS[kind](old.in_features, old.out_features, old.bias is not None)
    if old.bias is not None:
        new.bias = old.bias
    model.set_submodule(name, new)


def settle_storage(backbone: PreTrainedModel) -> None:
    """Finish a model that was loaded through a `StorageConfig`: it is a plain model to whoever uses it next."""
    quantizer: Any = backbone.hf_quantizer
    quantizer.remove_quantization_config(backbone)
    for name in quantizer.quantized:
        layer: Any = backbone.get_submodule(name.removesuffix(".weight"))
        layer.settle()
    _settle_embedding(backbone)
    held = sum(p.numel() * p.element_size() for p in backbone.parameters())
    log.info("weights as %s: %.2f GiB", quantizer.quantization_config.settings.weights, held / 2**30)


def store_in_place(backbone: PreTrainedModel, settings: ModelSettings) -> None:
    """Store the weights of a model that is there as loading its checkpoint would, where they lie and one by one.

    For random models of real sizes, which have no checkpoint. Raises as `check_storage` and `storage_of`.
    """
    check_storage(settings)
    storage = storage_of(backbone, settings)
    for name, parameter in backbone.named_parameters():
        kind = storage.get(name, torch.float32)
        if isinstance(kind, torch.dtype):
            parameter.data = parameter.data.to(kind)
    for name, kind in storage.items():
        if isinstance(kind, str):
            weight, layer = backbone.get_parameter(name).data, name.removesuffix(".weight")
            _replace(backbone, layer, kind)
            stored: Any = backbone.get_submodule(layer)
            stored.weight = stored.quantize(weight)
            stored.settle()
    _settle_embedding(backbone)


def _settle_embedding(backbone: PreTrainedModel) -> None:
    embedding = backbone.get_input_embeddings()
    if embedding.weight.dtype is torch.bfloat16:
        embedding.register_forward_hook(_as_float32)


def _as_float32(module: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
    """The residual stream is float32, whatever its first numbers are stored as."""
    return rows.float()
