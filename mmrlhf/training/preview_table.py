"""What stages are going to do (`plan=true`), as a table on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mmrlhf.terminal.words import add_row, new_table, show
from mmrlhf.training.preview import Preview
from mmrlhf.training.room import GIB


def show_previews(previews: Mapping[str, Preview | str]) -> None:
    """Print one column for each stage; a text stands for a stage that cannot be previewed yet."""
    shown = {name: preview for name, preview in previews.items() if isinstance(preview, Preview)}
    title = "what would be trained (tokens and memory are estimates)"
    table = new_table("", *shown, title=title, right=tuple(shown))
    rows = {
        "groups of an epoch": lambda p: f"{p.groups:,}",
        "pairs of different rank": lambda p: f"{p.pairs:,}",
        "text tokens of an epoch": lambda p: f"{p.text_tokens:,}",
        "visual tokens of an epoch": lambda p: f"{p.visual_tokens:,}",
        "queries that will not fit": lambda p: f"{len(p.preflight.too_long):,}",
        "queries that will be refused": lambda p: f"{len(p.preflight.refused):,}",
        "queries with responses to be cut": lambda p: f"{len(p.preflight.cut):,}",
        "optimizer steps": lambda p: f"{p.steps:,}",
        "micro-batches per step and rank": lambda p: f"{p.micro_batches_per_step:g}",
        "tokens of the largest micro-batch": lambda p: f"{p.largest_micro_batch:,}",
        **{
            f"{part}, GiB per rank": _gib(part)
            for part in ("parameters", "gradients", "optimizer", "activations", "total")
        },
        "scoring with critiques, GiB": lambda p: "" if p.scoring is None else f"{p.scoring['total'] / GIB:.3g}",
        "features of pictures if kept on disk, GiB": lambda p: f"{p.vision_features / GIB:.3g}",
        "device memory, GiB": lambda p: _known(p.device_bytes),
        "on the host while it loads, GiB per rank": lambda p: f"{p.host['loading'] / GIB:.3g}",
        "shards on the host (cpu_offload), GiB per rank": lambda p: f"{p.host['shards'] / GIB:.3g}",
        "host memory, GiB per rank": lambda p: _known(p.host_bytes),
        "fits, with a quarter in reserve": lambda p: {None: "unknown", True: "yes", False: "NO"}[p.fits],
    }
    for label, cell in rows.items():
        add_row(table, label, *(cell(preview) for preview in shown.values()))
    if shown:
        show(table)
    for name, preview in shown.items():
        for line in preview.preflight.lines():
            show(f"{name}: {line}")
        if preview.fits is False:
            show(f"{name} will not fit. What takes less: {preview.smaller}")
    for name, reason in previews.items():
        if isinstance(reason, str):
            show(f"{name}: {reason}")


def _known(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f}"


def _gib(part: str) -> Any:
    return lambda preview: f"{preview.memory[part] / GIB:.3g}"


def as_record(preview: Preview | str) -> Any:
    """A preview as JSON."""
    if isinstance(preview, str):
        return preview
    return asdict(preview) | {"fits": preview.fits, "preflight": preview.preflight.summary()}
