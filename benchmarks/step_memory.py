"""Peak memory of a whole optimizer step, measured in a fresh process each, beside what `plan=true` predicts for it.

With `--scoring`: of scoring queries with critiques, beside a step of as many tokens (asked for: at most twice as much).

    python -m benchmarks.step_memory
    python -m benchmarks.step_memory --shape tiny --visual 0 1176 --responses 4       # to try it out
    python -m benchmarks.step_memory --shape mini --lora --weights nf4 --visual 1176 --responses 4 --layout packed
    python -m benchmarks.step_memory --table                                          # the table of docs/memory.md
    python -m benchmarks.step_memory --scoring --shape mini                           # scoring beside a step
    python -m benchmarks.step_memory --shape 7b --device cuda --lora --checkpointing --visual 7000 --responses 5

The measured figure is of tensors: on a GPU the allocator's peak; on a CPU parameters and optimizer state, and what the
process grows by during the step, with a C library that gives freed memory back at once (`benchmarks.measure`). The
latter has libraries' scratch memory in it, which the kernels of bf16 take much of; `live_mib` is torch's tensors alone,
as a GPU's allocator would count them: one more step is watched for it.

The table has a row for each of six shapes and a column for each way of storing frozen weights (adapters train) and for
training in full, with and without recomputed layers: predicted / `live_mib`, and predicted / peak in brackets.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.live_tensors import LiveTensors
from benchmarks.measure import MIB, in_fresh_process, peak_of_tensors, report
from benchmarks.ours import OurStep
from benchmarks.workload import FRAMES, SHAPES, VISUALS, build_model, make_query, numbered
from mmrlhf.inference.passes import CACHE_PER_BUDGET
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.models.footprint import footprint
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import QUANTIZED, ModelSettings, untrained
from mmrlhf.tensors import PackedBatch
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import CritiqueTemplate

SCORED_QUERIES, SCORED_RESPONSES, CRITIQUE_TOKENS = 16, 5, 128


def measure(point: dict[str, Any]) -> None:
    """Print the peak of one step and its prediction, in this process."""
    report(**step_of(point))


def step_of(point: dict[str, Any]) -> dict[str, Any]:
    """The peak of one step in this process, and its prediction."""
    settings = ModelSettings(
        precision="bf16" if point["device"] == "cuda" or point["weights"] != "float32" else "float32",
        weights=point["weights"],
        layout=point["layout"],
        language="lora" if point["lora"] else "full",
        projector="frozen" if point["lora"] else "full",
        gradient_checkpointing=point["checkpointing"],
        max_tokens=32768,
    )
    query = make_query(point["responses"], point["visual"], shape=SHAPES[point["shape"]])
    ours = OurStep(point["folder"], settings, device=point["device"])
    batch = ours.prepare(query)
    peak, live = _peak(ours, batch), _live(ours, batch)
    predicted = _predict(point["folder"], settings, ours, batch)["total"] / MIB
    return {
        "benchmark": "step_memory",
        **{name: value for name, value in point.items() if name not in ("folder", "what")},
        "row_tokens": batch.num_tokens,
        "peak_mib": peak,
        "live_mib": live,
        "predicted_mib": predicted,
        "predicted_over_peak": predicted / peak,
        "predicted_over_live": predicted / live,
    }


def measure_scoring(point: dict[str, Any]) -> None:
    """Print the peak of scoring queries, or of a step on what of them fills the token budget, in this process."""
    shape = SHAPES[point["shape"]]
    query = make_query(SCORED_RESPONSES, point["visual"], shape=shape)
    queries = [numbered(query, n) for n in range(SCORED_QUERIES)]
    settings = ModelSettings(precision="bf16" if point["device"] == "cuda" else "float32", max_tokens=32768)
    if point["what"] == "scoring":
        judge = _judge(point, settings)
        peak = peak_of_tensors(partial(judge.score_groups, queries), judge.model.parameters())
        predicted = footprint(point["folder"], untrained(settings)).predict_scoring(
            cache_tokens=CACHE_PER_BUDGET * point["token_budget"], row_tokens=point["token_budget"]
        )
    else:
        ours = OurStep(point["folder"], settings, device=point["device"])
        encoded = [ours.encoder(each) for each in queries]
        batch = pack_groups(encoded[: max(1, point["token_budget"] // encoded[0].num_tokens)])
        peak, predicted = _peak(ours, batch), _predict(point["folder"], settings, ours, batch)
    report(
        benchmark="step_memory",
        **{name: value for name, value in point.items() if name != "folder"},
        peak_mib=peak,
        predicted_mib=predicted["total"] / MIB,
        predicted_over_peak=predicted["total"] / MIB / peak,
    )


def _peak(ours: OurStep, batch: PackedBatch) -> float:
    """MiB of tensors in one step."""
    ours.step([batch])  # the optimizer's state is made by the first
    return peak_of_tensors(partial(ours.step, [batch]), held(ours))


def _live(ours: OurStep, batch: PackedBatch) -> float:
    """MiB of torch's tensors when most live in one step."""
    with LiveTensors(held(ours)) as live:
        ours.step([batch])
    return live.peak / MIB


def held(ours: OurStep) -> list[Tensor]:
    """What is there between steps: parameters, buffers, what belongs to weights in few bits, the optimizer's state."""
    state = [value for each in ours.optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    return [*ours.model.parameters(), *ours.model.buffers(), *scales(ours.model), *state]


def scales(model: nn.Module) -> list[Tensor]:
    """Tensors that lie beside weights in 4 bits and are neither parameters nor buffers."""
    found: list[Tensor] = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            found += [value for value in vars(each).values() if isinstance(value, Tensor)] if each is not None else []
    return found


def _predict(folder: str, settings: ModelSettings, ours: OurStep, batch: PackedBatch) -> dict[str, float]:
    """Bytes that `plan=true` predicts for a step on one row."""
    image = ours.model.backbone.config.image_token_id
    return footprint(folder, settings).predict(
        row_tokens=batch.num_tokens,
        label_tokens=len(batch.label_ids),
        visual_tokens=int((batch.input_ids == image).sum()),
        num_groups=len(batch.keys),
        num_shards=1,
    )


def _judge(point: dict[str, Any], settings: ModelSettings) -> RewardModel:
    """A random reward model whose critiques never end early."""
    settings = untrained(settings)
    backbone, processor = load_backbone(point["folder"], settings)
    head = build_head("linear", SHAPES[point["shape"]].hidden)
    torch.nn.init.normal_(head.out.weight, generator=torch.Generator().manual_seed(0))
    judge = RewardModel(
        PackedModel(backbone, settings, head).to(point["device"]),
        processor,
        template=CritiqueTemplate("full", "judge :"),
        media=MediaSettings(num_frames=FRAMES),
        token_budget=point["token_budget"],
        critiques=CritiqueSettings(max_tokens=CRITIQUE_TOKENS),
    )
    output = backbone.get_output_embeddings()
    assert output is not None
    with torch.no_grad():
        # A logit of 0 is never the largest of thousands.
        output.weight[list(judge.encoder.end_tokens)] = 0.0
    return judge


def compare_scoring(point: dict[str, Any]) -> None:
    """Print one JSON line each for a step and for scoring, and one with how many times as much scoring takes."""
    found = {}
    for what in ("step", "scoring"):
        found[what] = in_fresh_process("benchmarks.step_memory", point | {"what": what})
        print(json.dumps(found[what]), flush=True)
    report(benchmark="step_memory", scoring_over_step=found["scoring"]["peak_mib"] / found["step"]["peak_mib"])


TABLED = ("mini", "deep", "wide", "grouped", "wordy", "small")
WAYS: dict[str, dict[str, Any]] = {
    "full": {"weights": "float32", "lora": False},
    **{weights: {"weights": weights, "lora": True} for weights in ("float32", "bf16", *QUANTIZED)},
}


def print_table(shapes: Sequence[str]) -> None:
    """Print a JSON line for each point of the table, and the table."""
    rows = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            build_model(SHAPES[shape], Path(folder))
            found = in_fresh_process("benchmarks.step_memory", {"what": "row", "shape": shape, "folder": folder})["row"]
        for each in found:
            report(**each)
        cells = [f"{each['predicted_over_live']:.2f} ({each['predicted_over_peak']:.2f})" for each in found]
        rows.append(f"| {shape} | " + " | ".join(cells) + " |")
    names = ["full", *(f"LoRA, {name}" for name in list(WAYS)[1:])]
    head = [*names, *(f"{name}, recomputed" for name in names)]
    print("| shape | " + " | ".join(head) + " |", "|---|" + "---|" * len(head), *rows, sep="\n")


def measure_row(point: dict[str, Any]) -> None:
    """Print a shape's points as one JSON object: one after another in this process, which gives memory back between."""
    fixed = {**point, "device": "cpu", "visual": 1176, "responses": 4, "layout": "packed"}
    found = []
    for checkpointing in (False, True):
        for way in WAYS.values():
            found.append(step_of(fixed | way | {"checkpointing": checkpointing}))
            gc.collect()
    report(row=found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--layout", choices=("packed", "rows"), nargs="+", default=["packed", "rows"])
    parser.add_argument("--visual", type=int, nargs="+", choices=VISUALS, default=list(VISUALS))
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--weights", choices=("float32", "bf16", *QUANTIZED), default="float32", help="of what is frozen"
    )
    parser.add_argument("--scoring", action="store_true")
    parser.add_argument("--table", nargs="*", choices=SHAPES, metavar="SHAPE", help="of these shapes, or of six")
    parser.add_argument("--token-budget", type=int, default=8192, help="of --scoring")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        what = options.point.get("what", "one step")
        {"one step": measure, "row": measure_row}.get(what, measure_scoring)(options.point)
        return
    if options.table is not None:
        print_table(options.table or TABLED)
        return
    fixed = {name: getattr(options, name) for name in ("shape", "device", "lora", "checkpointing", "weights")}
    with tempfile.TemporaryDirectory() as folder:
        build_model(SHAPES[options.shape], Path(folder))
        if options.scoring:
            fixed = {name: getattr(options, name) for name in ("shape", "device", "token_budget")}
            compare_scoring({**fixed, "visual": 1176, "folder": folder})
            return
        for visual in options.visual:
            for responses in options.responses:
                for layout in options.layout:
                    point = {"visual": visual, "responses": responses, "layout": layout, "folder": folder}
                    print(json.dumps(in_fresh_process("benchmarks.step_memory", fixed | point)), flush=True)


if __name__ == "__main__":
    main()
