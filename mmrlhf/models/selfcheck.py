"""Whether a model reads a packed row as it reads single rows: asked of the model itself, before anything is trained.

Kinds of layers that cannot (recurrent, convolutional, linear attention) are named by the configuration. What a
configuration does not say - a mask that is ignored, attention that counts row indices - shows when one small ragged
input is scored both ways.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from mmrlhf.errors import ModelError
from mmrlhf.models.families import check_packable
from mmrlhf.models.forward import PackedModel
from mmrlhf.tensors import PackedBatch, ResponseOutputs
from mmrlhf.text import first_line

log = logging.getLogger(__name__)

# Packed and single rows agree to about 1e-5 in float32; a model that reads other rows' tokens is off by far more.
TOLERANCE = 1e-3


def settle_layout(model: PackedModel, probes: Sequence[PackedBatch]) -> None:
    """Decide between `packed` and `rows` for a model whose settings leave it open, and confirm an explicit `packed`.

    Args:
        model: its `layout` is set in place.
        probes: small ragged rows of several responses each.

    Raises:
        ModelError: `layout=packed` was asked for and the model cannot read a packed row.
    """
    if model.settings.layout == "rows":
        return
    reason = check_packable(model.backbone) or _disagreement(model, probes)
    model.layout = "rows" if reason else "packed"
    if reason is None:
        return
    name = type(model.backbone).__name__
    if model.settings.layout == "packed":
        raise ModelError(
            "this model cannot read a packed row",
            where="model.settings.layout=packed",
            given=f"{name}: {reason}",
            expected="a language model whose layers follow the attention mask",
            fix="set model.settings.layout=auto or rows",
        )
    log.warning("%s cannot read packed rows (%s): every response runs in a row of its own (layout=rows)", name, reason)


@torch.no_grad()
def packing_error(model: PackedModel, batch: PackedBatch) -> float:
    """Largest difference between packed and single rows: log-probability per token, or last hidden state (relative).

    Model and batch must be on one device; mode and layout of the model are left as they were.
    """
    batch = batch.to(model.device)
    layout, training = model.layout, model.training
    model.eval()
    outputs: dict[str, ResponseOutputs] = {}
    try:
        for way in ("rows", "packed"):
            model.layout = way
            outputs[way] = model(batch)
    finally:
        model.layout = layout
        model.train(training)
    rows, packed = outputs["rows"], outputs["packed"]
    per_token = (packed.logprob - rows.logprob).abs() / rows.num_tokens.clamp(min=1)
    size = rows.hidden.float().square().mean(dim=1).sqrt().clamp(min=1e-6)
    hidden = (packed.hidden - rows.hidden).float().abs().amax(dim=1) / size
    return max(per_token.max().item(), hidden.max().item())


def _disagreement(model: PackedModel, probes: Sequence[PackedBatch]) -> str | None:
    """Say how packed and single rows differ, or None where they agree."""
    for batch in probes:
        try:
            error = packing_error(model, batch)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as problem:
            return f"{type(problem).__name__}: {first_line(problem)}"
        if not error < TOLERANCE:
            return f"its hidden states or log-probabilities differ by {error:.2g} from those of single rows"
    return None
