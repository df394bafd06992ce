"""Load a stock checkpoint, say which of its parts train, and how it runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from mmrlhf.errors import ConfigError, HubError, ModelError
from mmrlhf.models.families import adaptable_layers, check_packable, parts, vision_modules

log = logging.getLogger(__name__)

PARTS = ("vision", "projector", "language")
_CHOICES = {
    "precision": ("float32", "bf16"),
    "layout": ("auto", "packed", "rows"),
    "attention": ("auto", "sdpa", "flex"),
    **dict.fromkeys(PARTS, ("frozen", "full", "lora")),
}


@dataclass(frozen=True)
class ModelSettings:
    """How a backbone is loaded, trained and run.

    Args:
        family: expected `model_type` of the checkpoint; a checkpoint of another family is refused. Empty accepts any.
        precision: `float32`, or `bf16` (autocast, weights kept in float32).
        layout: `packed` (one row per micro-batch), `rows` (one padded row per response: the reference), or `auto`:
            packed where a self-check finds that the model reads it right, else rows.
        attention: of packed rows: `sdpa` (one group per batch entry), `flex` (FlexAttention: groups behind one another
            in one row, compiled, GPU), or `auto`: flex on a GPU where the layers allow, sdpa elsewhere.
        vision, projector, language: whether each part is `frozen`, trains in `full`, or has adapters (`lora`).
        lora_rank, lora_alpha, lora_dropout: of the adapters (peft), which are on the linear maps of the vision tower,
            of the projector and of the decoder layers.
        lora_head: also adapt the language-model head, where it shares no weight with the embedding.
        gradient_checkpointing: recompute each decoder layer in backward.
        max_tokens: longest prefix + response.
        logprob_chunk: label tokens whose logits exist at once (tokens x vocabulary is the largest tensor otherwise).
    """

    family: str = ""
    precision: str = "float32"
    layout: str = "auto"
    attention: str = "auto"
    vision: str = "frozen"
    projector: str = "full"
    language: str = "full"
    lora_rank: int = 64
    lora_alpha: float = 128.0
    lora_dropout: float = 0.0
    lora_head: bool = False
    gradient_checkpointing: bool = False
    max_tokens: int = 8192
    logprob_chunk: int = 1024

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    "unknown setting of a model",
                    where=f"model.settings.{name}",
                    given=getattr(self, name),
                    expected=f"one of {', '.join(allowed)}",
                )


def load_backbone(path: str | Path, settings: ModelSettings) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a checkpoint and its processor from a folder or the hub.

    Raises:
        HubError: where the hub cannot be reached.
        ModelError: a folder that is no checkpoint, another family than `settings.family`, or layers that cannot be
            packed.
    """
    check_family(path, settings)
    try:
        backbone = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            "this checkpoint cannot be loaded",
            where=str(path),
            given=str(error).splitlines()[0],
            expected="config.json, safetensors and processor files of a transformers image-text-to-text model",
        ) from error
    reason = check_packable(backbone)
    if reason and settings.layout == "packed":
        raise ModelError(
            "this model cannot read a packed row", where=str(path), given=reason, fix="set model.settings.layout=rows"
        )
    return backbone, cast(ProcessorMixin, processor)


def check_family(path: str | Path, settings: ModelSettings) -> None:
    """Read a checkpoint's config and compare its family with the wanted one; cheap, no weights are read.

    Raises HubError and ModelError, as `load_backbone`.
    """
    config = _load_config(path)
    if settings.family and config.model_type != settings.family:
        raise ModelError(
            "a checkpoint of another family",
            where=str(path),
            given=f"model_type {config.model_type!r}",
            expected=f"{settings.family!r} (model.settings.family)",
            fix="choose the matching `model=` group, or another model.path",
        )


def _load_config(path: str | Path) -> Any:
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise ModelError(
            "this folder is not a model checkpoint",
            where=str(path),
            given="no config.json in it",
            expected="a folder written by save_pretrained (config.json, *.safetensors, processor files)",
            fix="give the folder itself in model.path, or a hub id",
        )
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"neither a folder on this machine nor reachable on the hub: {path}",
            where="model.path",
            given=str(error).splitlines()[0],
            expected="a hub id that can be fetched now, or a folder with the checkpoint",
            fix="download the checkpoint where there is a network and give its folder: model.path=DIR",
        ) from error
    except ValueError as error:
        raise ModelError("unknown model type", where=str(path), given=str(error).splitlines()[0]) from error


def set_trainable(backbone: PreTrainedModel, settings: ModelSettings) -> PeftModel | None:
    """Freeze, free or adapt the parts of a backbone in place; returns the adapter's owner where LoRA is used."""
    adapters = None
    adapted = [name for part in PARTS if getattr(settings, part) == "lora" for name in _layers_to_adapt(backbone, part)]
    if adapted:
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=settings.lora_dropout,
            target_modules=adapted + (_head_to_adapt(backbone) if settings.lora_head else []),
        )
        adapters = cast(PeftModel, get_peft_model(backbone, config))
    for part, parameters in parts(backbone).items():
        mode = getattr(settings, part)
        for parameter in parameters:
            if mode != "lora":
                parameter.requires_grad_(mode == "full")
    if settings.vision == "frozen":
        for module in vision_modules(backbone):
            module.eval()
    if settings.gradient_checkpointing:
        # transformers 5.23 renamed the method; the older name is the one that releases before it have.
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return adapters


def _layers_to_adapt(backbone: PreTrainedModel, part: str) -> list[str]:
    """Names of a part's linear maps; ConfigError where it has none (Gemma 3's projector is a bare matrix)."""
    names = adaptable_layers(backbone, part)
    if not names:
        raise ConfigError(
            f"the {part} of this model has no linear map that adapters could be put on",
            where=f"model.settings.{part}",
            given="lora",
            expected="frozen or full",
        )
    return names


def _head_to_adapt(backbone: PreTrainedModel) -> list[str]:
    """The name of the language-model head; ConfigError where it is also the embedding, which would change, too."""
    head, embedding = backbone.get_output_embeddings(), backbone.get_input_embeddings()
    if head is None or head.weight is embedding.weight:
        raise ConfigError(
            "this model's head is also its embedding, so it cannot have adapters of its own",
            where="model.settings.lora_head",
            given=True,
            expected="a checkpoint with tie_word_embeddings=false",
            fix="leave lora_head out",
        )
    return [name for name, module in backbone.named_modules() if module is head]
