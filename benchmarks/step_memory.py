"""Peak memory of a whole optimizer step, measured in a fresh process each, beside what `plan=true` predicts for it.

    python -m benchmarks.step_memory
    python -m benchmarks.step_memory --shape tiny --visual 0 1176 --responses 4       # to try it out
    python -m benchmarks.step_memory --shape 7b --device cuda --lora --checkpointing --visual 7000 --responses 5

On a CPU the measured figure is what the step adds to the process before the model was loaded; memory that the allocator
holds back is part of it. On a GPU it is the allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import MIB, in_fresh_process, peak_memory, report, resident
from benchmarks.ours import OurStep
from benchmarks.workload import SHAPES, VISUALS, build_model, make_query
from mmrlhf.models.footprint import footprint
from mmrlhf.models.load import ModelSettings


def measure(point: dict[str, Any]) -> None:
    """Print the peak of one step and its prediction, in this process."""
    settings = ModelSettings(
        precision="bf16" if point["device"] == "cuda" else "float32",
        layout=point["layout"],
        language="lora" if point["lora"] else "full",
        projector="frozen" if point["lora"] else "full",
        gradient_checkpointing=point["checkpointing"],
        max_tokens=32768,
    )
    query = make_query(point["responses"], point["visual"], shape=SHAPES[point["shape"]])
    empty = 0 if torch.cuda.is_available() else resident()
    ours = OurStep(point["folder"], settings, device=point["device"])
    batch = ours.prepare(query)
    peak = peak_memory(partial(ours.step, [batch]))["peak_mib"] - empty / MIB
    predicted = footprint(point["folder"], settings).predict(
        row_tokens=batch.num_tokens, label_tokens=len(batch.label_ids), num_shards=1
    )
    report(
        benchmark="step_memory",
        **{name: value for name, value in point.items() if name != "folder"},
        row_tokens=batch.num_tokens,
        peak_mib=peak,
        predicted_mib=predicted["total"] / MIB,
        predicted_over_peak=predicted["total"] / MIB / peak,
    )


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
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        measure(options.point)
        return
    fixed = {name: getattr(options, name) for name in ("shape", "device", "lora", "checkpointing")}
    with tempfile.TemporaryDirectory() as folder:
        build_model(SHAPES[options.shape], Path(folder))
        for visual in options.visual:
            for responses in options.responses:
                for layout in options.layout:
                    point = {"visual": visual, "responses": responses, "layout": layout, "folder": folder}
                    print(json.dumps(in_fresh_process("benchmarks.step_memory", fixed | point)), flush=True)


if __name__ == "__main__":
    main()
