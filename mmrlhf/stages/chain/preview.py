"""What a training stage is going to do, from the shards' index and the checkpoint's configuration alone: `plan=true`.

Nothing is decoded and no weight is loaded. Tokens are estimated from the index, at what the text of a few queries
costs; the same estimates fill micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoProcessor, ProcessorMixin

from mmrlhf.data.dataset import GroupDataset
from mmrlhf.data.encode import Encoder
from mmrlhf.data.index import Index
from mmrlhf.data.plan import epoch_steps, micro_batches
from mmrlhf.data.templates import AnswerTemplate, CritiqueTemplate, Template
from mmrlhf.models.features import bytes_per_token
from mmrlhf.models.footprint import footprint
from mmrlhf.stages.chain.order import Node, parse_reference
from mmrlhf.stages.chain.runner import Runner
from mmrlhf.stages.settings import Schedule, TrainSettings

GIB = 2**30
MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "total")


@dataclass(frozen=True)
class Preview:
    """What a stage trains on and what a step costs.

    Tokens are estimates; memory is bytes on one rank, vision_features bytes on disk (`runtime.vision_cache_gib`).
    """

    groups: int
    pairs: int
    text_tokens: int
    visual_tokens: int
    steps: int
    micro_batches_per_step: float
    largest_micro_batch: int
    memory: Mapping[str, float]
    vision_features: int
    device_bytes: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the estimate is below the device's memory; None where that is not known."""
        return None if self.device_bytes is None else self.memory["total"] < self.device_bytes


def preview_stage(
    *,
    shards: Path,
    checkpoint: str | Path,
    training: TrainSettings,
    template: Template,
    world_size: int,
    sharded: bool,
) -> Preview:
    """Predict a training stage.

    Args:
        shards: folder of shards.
        checkpoint: any checkpoint of the architecture that trains.
        training: as the stage gets it.
        template: says whether critiques are among the tokens.
        world_size: ranks; sharded: whether they share one model (FSDP).
    """
    model, schedule = training.model, training.schedule
    index = Index.load(shards)
    rows = index.split("train", schedule.holdout, schedule.limit)
    processor = cast(ProcessorMixin, AutoProcessor.from_pretrained(checkpoint))
    encoder = Encoder(
        processor,
        template=template,
        positions=lambda ids, media: torch.arange(len(ids))[None],
        media=training.media,
        max_tokens=model.max_tokens,
    )
    GroupDataset(index, encoder).calibrate(rows)
    entries = {int(row): index.entries[int(row)] for row in rows}
    costs = {row: encoder.estimate_tokens(entry) for row, entry in entries.items()}
    visual = sum(encoder.estimate_visual_tokens(entry) for entry in entries.values())
    plans = epoch_steps(
        rows, digest=index.digest, seed=schedule.seed, epoch=0, groups_per_step=schedule.groups_per_step
    )
    counts, largest = [], 0
    for plan in plans:
        own = [costs[int(row)] for row in plan.indices]
        bins = micro_batches(own, token_budget=schedule.token_budget, world_size=world_size)
        counts.append(len(bins) // world_size)
        largest = max(largest, *(sum(own[i] for i in members) for members in bins))
    # Words are mostly responses, whose log-probabilities count.
    labels = round(largest * (1 - visual / max(sum(costs.values()), 1)))
    memory = footprint(checkpoint, model).predict(
        row_tokens=largest, label_tokens=labels, num_shards=world_size if sharded else 1
    )
    limits = [limit for limit in (_epoch_steps(schedule, len(plans)), schedule.max_steps) if limit is not None]
    return Preview(
        groups=len(rows),
        pairs=int(index.column("num_pairs")[rows].sum()),
        text_tokens=sum(costs.values()) - visual,
        visual_tokens=visual,
        steps=min(limits),
        micro_batches_per_step=float(median(counts)),
        largest_micro_batch=largest,
        memory=memory,
        vision_features=visual * bytes_per_token(AutoConfig.from_pretrained(checkpoint), model.precision),
        device_bytes=device_memory(),
    )


def _epoch_steps(schedule: Schedule, steps_per_epoch: int) -> int | None:
    return None if schedule.epochs is None else max(1, math.ceil(schedule.epochs * steps_per_epoch - 1e-9))


def device_memory() -> int | None:
    """Bytes of the first GPU, or of the machine's memory without one; None where neither can be asked."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    return int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024


def preview_chain(
    chain: Sequence[Node], runner: Runner, *, training: Collection[str], make: Callable[[Node], Mapping[str, Any]]
) -> dict[str, Preview | str]:
    """Predict every training stage of a chain; only what makes its shards and its first checkpoint runs for it.

    Args:
        training: names of the stages that train.
        make: makes the objects that a node's settings describe.
    """
    nodes = {node.name: node for node in chain}
    wanted = {stage for name in training if name in nodes for stage in _sources(nodes, name, training)}
    ready: set[str] = set()
    for node in chain:
        if node.name in wanted and ready.issuperset(node.references):
            ready.add(node.name)
    artifacts = {built.stage: built.folder for built in runner.run([node for node in chain if node.name in ready])}
    strategy = runner.runtime.get("trainer", {}).get("strategy")
    found: dict[str, Preview | str] = {}
    for name in (node.name for node in chain if node.name in training):
        shards, checkpoint = (_resolve(nodes, artifacts, name, key) for key in ("shards", "policy"))
        if shards is None or checkpoint is None:
            found[name] = "what it reads is made by stages that have not run yet"
            continue
        made = make(nodes[name])
        found[name] = preview_stage(
            shards=Path(shards),
            checkpoint=checkpoint,
            training=made["training"],
            template=AnswerTemplate() if made.get("critique", "none") == "none" else CritiqueTemplate(),
            world_size=runner.num_processes,
            sharded=isinstance(strategy, Mapping),
        )
    return found


def _sources(nodes: Mapping[str, Node], name: str, training: Collection[str]) -> set[str]:
    """Stages that make a training stage's shards or checkpoint, with theirs, up to the next training."""
    found: set[str] = set()
    waiting = [text for key in ("shards", "policy") if isinstance(text := nodes[name].settings.get(key), str)]
    while waiting:
        text = waiting.pop()
        stage = parse_reference(text)[0] if text.startswith("stage:") else None
        if stage is not None and stage not in found and stage not in training:
            found.add(stage)
            waiting += [f"stage:{reference}" for reference in nodes[stage].references]
    return found


def _resolve(nodes: Mapping[str, Node], artifacts: Mapping[str, Path], name: str, key: str) -> str | None:
    """An input's path. A checkpoint that is still to be trained has the architecture of the one it starts from."""
    value = nodes[name].settings.get(key)
    if not isinstance(value, str) or not value.startswith("stage:"):
        return value
    stage, sub = parse_reference(value)
    if stage in artifacts:
        return str(artifacts[stage] / sub)
    return _resolve(nodes, artifacts, stage, key) if key == "policy" and stage in nodes else None


def show_previews(previews: Mapping[str, Preview | str]) -> None:
    """Print one column for each stage; a text stands for a stage that cannot be previewed yet."""
    table = Table(title="what would be trained (tokens and memory are estimates)")
    table.add_column("")
    shown = {name: preview for name, preview in previews.items() if isinstance(preview, Preview)}
    for name in shown:
        table.add_column(name, justify="right")
    rows = {
        "groups": lambda p: f"{p.groups:,}",
        "pairs": lambda p: f"{p.pairs:,}",
        "text tokens of an epoch": lambda p: f"{p.text_tokens:,}",
        "visual tokens of an epoch": lambda p: f"{p.visual_tokens:,}",
        "optimizer steps": lambda p: f"{p.steps:,}",
        "micro-batches per step and rank": lambda p: f"{p.micro_batches_per_step:g}",
        "tokens of the largest micro-batch": lambda p: f"{p.largest_micro_batch:,}",
        **{
            f"{part}, GiB per rank": _gib(part)
            for part in ("parameters", "gradients", "optimizer", "activations", "total")
        },
        "features of pictures if kept on disk, GiB": lambda p: f"{p.vision_features / GIB:.3g}",
        "device memory, GiB": lambda p: "unknown" if p.device_bytes is None else f"{p.device_bytes / GIB:.1f}",
        "fits": lambda p: {None: "unknown", True: "yes", False: "NO"}[p.fits],
    }
    for label, cell in rows.items():
        table.add_row(label, *(cell(preview) for preview in shown.values()))
    console = Console()
    if shown:
        console.print(table)
    for name, reason in previews.items():
        if isinstance(reason, str):
            console.print(f"{name}: {reason}")


def _gib(part: str) -> Any:
    return lambda preview: f"{preview.memory[part] / GIB:.3g}"


def as_record(preview: Preview | str) -> Any:
    """A preview as JSON."""
    return preview if isinstance(preview, str) else asdict(preview) | {"fits": preview.fits}
