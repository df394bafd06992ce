"""What a pass asks, of which model and how, for the fingerprints of its tables: all that its numbers depend on."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.fingerprint import digest, path_token
from mmrlhf.files import expanded
from mmrlhf.inference.settings import PassSettings
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import context_length
from mmrlhf.models.settings import QUANTIZED, ModelSettings
from mmrlhf.shards.index import Index
from mmrlhf.tokens.templates import Template


def describe_source(path: Path | str) -> str:
    """Name what a model was for a side-car's fingerprint: a folder by its content, a hub id by its name."""
    return path_token(Path(path)) if expanded(path).exists() else f"hub:{path}"


def describe_pass(index: Index, rows: np.ndarray, passes: PassSettings) -> dict[str, Any]:
    """Which queries a pass asks and how, as far as the answers depend on it, before any model is loaded."""
    model = passes.model
    return {
        "shards": index.digest,
        "queries": f"{len(rows)} ({digest(rows.tolist())[:16]})",
        **{name: getattr(model, name) for name in ("precision", "layout", "max_tokens", "too_long")},
        "weights": describe_weights(model),
        "media": asdict(passes.media) if passes.media is not None else None,
    }


def describe_run(model: PackedModel) -> dict[str, Any]:
    """How a model is run, as far as its numbers depend on it, for a side-car's fingerprint."""
    settings = model.settings
    longest = context_length(settings, model.backbone.config)
    return {
        "max_tokens": longest,
        "too_long": settings.too_long,
        "precision": settings.precision,
        "weights": describe_weights(settings),
        "layout": model.layout,
    }


def describe_weights(settings: ModelSettings) -> str:
    """What the weights of a model that is only asked are stored as, for a side-car's fingerprint."""
    quantized = f" ({', '.join(settings.quantized_parts)})" if settings.weights in QUANTIZED else ""
    return settings.weights + quantized


def describe_template(template: Template) -> dict[str, Any]:
    """Everything that a template adds to the tokens, for a side-car's fingerprint."""
    return asdict(template) if is_dataclass(template) and not isinstance(template, type) else {"name": template.name}
