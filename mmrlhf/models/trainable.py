"""Which parts of a loaded backbone train: frozen, in full, or by adapters (LoRA)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from transformers import PreTrainedModel

from mmrlhf.errors import ConfigError
from mmrlhf.models.families import adaptable_layers, parts, vision_modules
from mmrlhf.models.settings import PARTS, ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel


def set_trainable(backbone: PreTrainedModel, settings: ModelSettings) -> PeftModel | None:
    """Freeze, free or adapt the parts of a backbone in place; returns the adapter's owner where LoRA is used."""
    layers = {part: _layers_to_adapt(backbone, part) for part in PARTS if getattr(settings, part) == "lora"}
    adapters = with_adapters(backbone, settings, layers) if layers else None
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
        # It makes what every embedding gives, pictures' too, want a gradient, which only reentrant checkpointing needs:
        # a frozen tower would keep all of its activations and run backward for nothing.
        backbone.disable_input_require_grads()
    return adapters


def with_adapters(backbone: PreTrainedModel, settings: ModelSettings, layers: Mapping[str, list[str]]) -> PeftModel:
    """Add adapters to a backbone in place.

    Args:
        layers: part -> names of its layers that are adapted.
    """
    # peft imports the quantised kernels, and those the compiler: 1.4 s that only runs with adapters have to spend
    from peft import LoraConfig, get_peft_model

    adapted = [name for names in layers.values() for name in names]
    ranks = {part: getattr(settings, f"{part}_lora_rank") for part in layers}
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        rank_pattern={re.escape(n): ranks[part] for part, names in layers.items() if ranks[part] for n in names},
        use_rslora=settings.lora_rslora,
        use_dora=settings.lora_dora,
        target_modules=adapted + (_head_to_adapt(backbone) if settings.lora_head else []),
    )
    return cast("PeftModel", get_peft_model(backbone, config))


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
