"""How a model is loaded, trained and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmrlhf.errors import ConfigError
from mmrlhf.ranges import Count, Positive, ShareBelowOne, check_fields

PARTS = ("vision", "projector", "language")
QUANTIZED = ("nf4", "int8")
ATTENTION = ("auto", "sdpa", "flex", "cascade")
_CHOICES = {
    "weights": ("float32", "bf16", *QUANTIZED),
    "precision": ("float32", "bf16"),
    "layout": ("auto", "packed", "rows"),
    "attention": ATTENTION,
    "too_long": ("shorten", "refuse"),
    **dict.fromkeys(PARTS, ("frozen", "full", "lora")),
}


@dataclass(frozen=True)
class ModelSettings:
    """How a backbone is loaded, trained and run.

    Args:
        family: expected `model_type` of the checkpoint; a checkpoint of another family is refused. Empty accepts any.
        precision: `float32`, or `bf16` (autocast).
        weights: what weights that do not train are stored as: `float32`, `bf16`, or the linear maps of
            `quantized_parts` in 4 bits (`nf4`) or 8 (`int8`), through bitsandbytes; see `mmrlhf.models.storage`.
        quantized_parts: parts whose linear maps are in 4 or 8 bits; none of them may train in full.
        layout: `packed` (one row per micro-batch), `rows` (one padded row per response: the reference), or `auto`:
            packed where a self-check finds that the model reads it right, else rows.
        attention: of packed rows: `sdpa` (one group per batch entry), `flex` (FlexAttention: groups behind one another
            in one row, compiled, GPU), `cascade` (no mask at all: prefixes and branches apart, joined; see
            `mmrlhf.models.cascade`), or `auto`: flex on a GPU where the layers allow, sdpa elsewhere.
        vision, projector, language: whether each part is `frozen`, trains in `full`, or has adapters (`lora`).
        lora_rank, lora_alpha, lora_dropout: of the adapters (peft), which are on the linear maps of the vision tower,
            of the projector and of the decoder layers.
        vision_lora_rank, projector_lora_rank, language_lora_rank: rank in one part; None: `lora_rank`.
        lora_rslora: updates are scaled by alpha / sqrt(rank) and not by alpha / rank (arXiv 2312.03732).
        lora_dora: weights are learned as direction and magnitude (arXiv 2402.09353).
        lora_head: also adapt the language-model head, where it shares no weight with the embedding.
        gradient_checkpointing: recompute each decoder layer in backward.
        max_tokens: longest prefix + response; None: as many as the checkpoint has positions for (`context_length`).
        too_long: what becomes of a response that does not fit: `shorten` it at its end, or `refuse` its query. Neither
            media nor a prompt nor what asks for a critique is ever cut.
        logprob_chunk: label tokens whose logits exist at once (tokens x vocabulary is the largest tensor otherwise).
    """

    family: str = ""
    precision: str = "float32"
    weights: str = "float32"
    quantized_parts: Sequence[str] = ("language",)
    layout: str = "auto"
    attention: str = "auto"
    vision: str = "frozen"
    projector: str = "full"
    language: str = "full"
    lora_rank: Count = 64
    lora_alpha: Positive = 128.0
    lora_dropout: ShareBelowOne = 0.0
    vision_lora_rank: Count | None = None
    projector_lora_rank: Count | None = None
    language_lora_rank: Count | None = None
    lora_rslora: bool = False
    lora_dora: bool = False
    lora_head: bool = False
    gradient_checkpointing: bool = False
    max_tokens: Count | None = None
    too_long: str = "shorten"
    logprob_chunk: Count = 1024

    @property
    def needs_plain_layers(self) -> bool:
        """Whether packed rows are asked for with a back end that knows plain causal attention alone."""
        return self.layout != "rows" and self.attention in ("flex", "cascade")

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    "unknown setting of a model",
                    argument=name,
                    given=getattr(self, name),
                    expected=f"one of {', '.join(allowed)}",
                )
        unknown = [part for part in self.quantized_parts if part not in PARTS]
        if unknown or not self.quantized_parts:
            raise ConfigError(
                "these are no parts of a model that could be quantised",
                argument="quantized_parts",
                given=list(self.quantized_parts),
                expected=f"some of {', '.join(PARTS)}",
            )


def untrained(settings: ModelSettings) -> ModelSettings:
    """The same settings for a model that is only asked: every part frozen, no adapters added."""
    return replace(settings, **dict.fromkeys(PARTS, "frozen"))


def require_shardable(layout: str) -> None:
    """Raise ConfigError for a layout that ranks cannot compute apart from each other while they share a model."""
    if layout == "rows":
        # Each query of a micro-batch is a forward of its own there, and ranks with fewer would not come to the last.
        raise ConfigError(
            "one row for each response takes a forward for each query, which ranks that share a model cannot do apart",
            where="model.settings.layout, trainer",
            given="layout=rows with a sharded model",
            expected="layout=packed, or a whole model on every rank",
            fix="trainer=ddp, or a model whose layers take a packed row",
        )
