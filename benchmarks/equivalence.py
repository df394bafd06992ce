"""Our forward against the stock model, row by row: worst error per cell of family x modality x way of running it.

    python -m benchmarks.equivalence [FAMILY ...]

One JSON line per cell, and at the end the table of docs/performance.md. Every cell is one micro-batch of six queries
with 1 to 6 responses of different length, on a tiny random model with the family's real architecture, processor and
chat template; the other side is the stock model's forward on its processor's own tensors, one response at a time.
Errors: log-probability of a response per token (absolute), and the gradient of a fixed mix of all log-probabilities and
last hidden states over all trained parameters (relative, in the 2-norm).
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone
from mmrlhf.models.masks import attention_pattern
from mmrlhf.models.random_checkpoints import FAMILIES, build_tiny, is_available
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tensors import ResponseOutputs
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.types import Media, PreferenceGroup, Response

MODALITIES = ("image", "images", "video", "text", "conversation", "own media")
# How the model runs: packed rows that train every part, adapters in the decoder layers, or every part with recomputed
# layers; packed rows with FlexAttention (on a CPU torch has its forward only); packed rows without a mask, every part
# trained, or adapters and recomputed layers; single rows.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": {"vision": "full", "projector": "full", "language": "full"},
    "lora": {"vision": "frozen", "projector": "frozen", "language": "lora", "lora_rank": 4, "lora_alpha": 4.0},
    "checkpointing": {"vision": "full", "projector": "full", "language": "full", "gradient_checkpointing": True},
    "flex": {"attention": "flex"},
    "cascade": {"attention": "cascade", "vision": "full", "projector": "full", "language": "full"},
    "cascade, lora": {
        "attention": "cascade",
        "projector": "frozen",
        "language": "lora",
        "lora_rank": 4,
        "lora_alpha": 4.0,
        "gradient_checkpointing": True,
    },
    "rows": {"layout": "rows", "vision": "full", "projector": "full", "language": "full"},
}
# Lines of the table: back end and layout -> the ways that use them.
MASKLESS = ("flex", "cascade", "cascade, lora")  # for plain causal layers only
LINES = {
    "packed, sdpa": ("full", "lora", "checkpointing"),
    "packed, flex": ("flex",),
    "packed, cascade": ("cascade", "cascade, lora"),
    "rows, sdpa": ("rows",),
}
WORDS = "a red circle above two blue squares near the left edge , four objects in all".split()
TEXTS = [" ".join(WORDS), "what is in the picture ? Frame1: Frame2: user assistant"] * 20


@dataclass(frozen=True)
class Cell:
    """Worst errors of one cell; gradient is None where only the forward runs."""

    family: str
    modality: str
    way: str
    logprob: float
    gradient: float | None


def query(modality: str, num_responses: int, seed: int) -> PreferenceGroup:
    """A query with random media and `num_responses` answers of 1 to 12 words."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 13))) for _ in range(num_responses)]
    media: tuple[Media, ...] = ()
    if modality in ("image", "images", "conversation", "own media"):
        media = tuple(_picture(rng) for _ in range(2 if modality in ("images", "conversation") else 1))
    elif modality == "video":
        width, height = rng.integers(40, 70, 2)
        names = tuple(f"f{i:03d}.png" for i in range(4))
        media = (Media("frames", names, tuple(_png(rng, width, height) for _ in names)),)
    own = [(_picture(rng),) if modality == "own media" and number % 3 else () for number in range(num_responses)]
    responses = tuple(Response(text, rank=rank, media=own[rank - 1]) for rank, text in enumerate(texts, 1))
    words = " ".join(rng.choice(WORDS, 5))
    asked = Conversation.about(words, [each.slot for each in media])
    if modality == "conversation":
        earlier = Turn("user", ("first", IMAGE, words)), Turn("assistant", (texts[0],))
        asked = Conversation((*earlier, Turn("user", ("then", IMAGE, words))))
    return PreferenceGroup(f"{modality}-{num_responses}", asked, responses, media)


def measure(folder: Path, family: str, modality: str, way: str) -> Cell | None:
    """Worst errors of one cell, for a model saved in `folder`; None where the family cannot run this way."""
    settings = ModelSettings(**{"layout": "packed", **WAYS[way]})
    backbone, processor = load_backbone(folder, settings)
    if way in MASKLESS and not attention_pattern(backbone.config).plain:
        return None
    positions = positions_for(backbone)
    torch.manual_seed(0)
    model = PackedModel(backbone, settings).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder = Encoder(processor, template=AnswerTemplate(), positions=positions, media=MediaSettings(num_frames=4))
    queries = [query(modality, k, seed=k) for k in (3, 1, 6, 2, 5, 4)]
    with torch.set_grad_enabled(way != "flex"):
        ours = model(pack_groups([encoder(q) for q in queries]))
        our_gradient = _gradient(model, ours) if way != "flex" else None
        stock = stock_outputs(model, encoder, queries)
    per_token = ((ours.logprob - stock.logprob).abs() / stock.num_tokens).max()
    gradient = None
    if our_gradient is not None:
        stock_gradient = _gradient(model, stock)
        gradient = float((our_gradient - stock_gradient).norm() / stock_gradient.norm())
    return Cell(family, modality, way, float(per_token.detach()), gradient)


def stock_outputs(model: PackedModel, encoder: Encoder, queries: list[PreferenceGroup]) -> ResponseOutputs:
    """Each response alone through the stock model's own forward, on its processor's own tensors."""
    logprob, count, hidden = [], [], []
    for group in queries:
        for response in group.responses:
            inputs, labels = encoder.stock_inputs(group, response)
            output: Any = model.backbone(**inputs, output_hidden_states=True, use_cache=False)
            ids = inputs["input_ids"][0]
            num_labels = len(encoder.tokenizer(labels, add_special_tokens=False)["input_ids"])
            logs = output.logits[0].log_softmax(-1)[-num_labels - 1 : -1]
            logprob.append(logs.gather(1, ids[-num_labels:, None])[:, 0])
            count.append(float(num_labels))
            hidden.append(output.hidden_states[-1][0, -1])
    sums = torch.stack([each.sum() for each in logprob])
    return ResponseOutputs(sums, torch.tensor(count), torch.stack(hidden), torch.cat(logprob))


def _picture(rng: np.random.Generator) -> Media:
    return Media("image", (f"{rng.integers(1 << 30)}.png",), (_png(rng),))


def _gradient(model: PackedModel, outputs: ResponseOutputs) -> Tensor:
    """All parameter gradients of a fixed mix of log-probabilities and hidden states, as one vector."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(outputs.logprob))
    (outputs.logprob @ weights + outputs.hidden.sum(1) @ weights).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _png(rng: np.random.Generator, width: int | None = None, height: int | None = None) -> bytes:
    shape = (height or int(rng.integers(40, 100)), width or int(rng.integers(40, 100)), 3)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def cells(families: list[str]) -> Iterator[Cell]:
    """Measure every cell of the matrix for these families, one tiny model each."""
    with tempfile.TemporaryDirectory() as root:
        for family in families:
            build_tiny(family, Path(root) / family, texts=TEXTS)
            for modality in MODALITIES:
                for way in WAYS:
                    cell = measure(Path(root) / family, family, modality, way)
                    if cell is not None:
                        yield cell


def table(found: list[Cell]) -> str:
    """Markdown: a row for each family, layout and back end, worst error over its ways: log-probability / gradient."""
    lines = ["| family | layout, back end | " + " | ".join(MODALITIES) + " |", "|---|---|" + "---|" * len(MODALITIES)]
    for family in dict.fromkeys(cell.family for cell in found):
        for line, ways in LINES.items():
            entries = []
            for modality in MODALITIES:
                here = [c for c in found if (c.family, c.modality) == (family, modality) and c.way in ways]
                entries.append(_worst(here))
            lines.append(f"| {family} | {line} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _worst(cells: list[Cell]) -> str:
    if not cells:
        return "cannot"
    gradients = [cell.gradient for cell in cells if cell.gradient is not None]
    return f"{max(cell.logprob for cell in cells):.0e} / " + (f"{max(gradients):.0e}" if gradients else "-")


def main(names: Sequence[str] = ()) -> None:
    """Print a JSON line per cell and the table, for the families named, or all."""
    families = list(names) or [family for family in FAMILIES if is_available(family)]
    found = []
    for cell in cells(families):
        found.append(cell)
        print(json.dumps({"benchmark": "equivalence", **cell.__dict__}), flush=True)
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
