"""One optimizer step of a random model in a shape's sizes on one device, measured in this process: a part of `gpu.py`.

    python -m benchmarks.device_step --shape tiny --visual 1176
    python -m benchmarks.device_step --shape 7b --device cuda --language lora --weights nf4 --checkpointing
    python -m benchmarks.device_step --machine --device cuda

No checkpoint is written or read: the model is made on the device, stored as `--weights` says. The first number of
visual tokens that fits is measured; those that did not are said. Prints one JSON line: log-probabilities of the
responses before the first step (so that back ends can be compared: a seed gives one model), seconds of a step,
operations of its matrix products, the allocator's peak and what `plan=true` predicts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import __version__ as transformers_version

from benchmarks.measure import MIB, count_products, matmul_rate, peak_of_tensors, report, seconds_of
from benchmarks.ours import OurStep
from benchmarks.workload import SHAPES, VISUALS, make_query, random_backbone, write_config
from mmrlhf.models.footprint import footprint
from mmrlhf.models.forward import autocast
from mmrlhf.models.settings import ATTENTION, QUANTIZED, ModelSettings
from mmrlhf.tensors import PackedBatch


def settings_for(options: argparse.Namespace) -> ModelSettings:
    """The language model in full or by adapters, the tower frozen, bfloat16 wherever the weights or the device ask."""
    half = options.device == "cuda" or options.weights != "float32"
    return ModelSettings(
        precision="bf16" if half else "float32",
        weights=options.weights,
        attention=options.attention,
        language=options.language,
        projector="frozen" if options.language == "lora" else "full",
        gradient_checkpointing=options.checkpointing,
        max_tokens=32768,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Make the model and measure a step with the first number of visual tokens that fits.

    Raises:
        torch.OutOfMemoryError: none fits.
    """
    settings, shape = settings_for(options), SHAPES[options.shape]
    with tempfile.TemporaryDirectory() as folder:
        backbone = random_backbone(write_config(shape, folder), settings, device=options.device)
        ours = OurStep(folder, settings, device=options.device, backbone=backbone)
        too_much: list[int] = []
        for visual in options.visual:
            batch = ours.prepare(make_query(options.responses, visual, shape=shape))
            try:
                found = measure_step(ours, batch, options.rounds)
            except torch.OutOfMemoryError:
                too_much.append(visual)
                if visual == options.visual[-1]:
                    raise
                continue
            predicted = predict(folder, settings, ours, batch)
            return {
                "visual": visual,
                "visual_that_did_not_fit": too_much,
                "visual_tokens": num_visual(ours, batch),
                **found,
                "predicted_mib": predicted,
                "predicted_over_peak": predicted / found["peak_mib"],
            }
    raise AssertionError("at least one number of visual tokens")


def measure_step(ours: OurStep, batch: PackedBatch, rounds: int) -> dict[str, Any]:
    """Log-probabilities, seconds, operations and peak of a step on one packed batch."""
    with torch.no_grad(), autocast(ours.settings, ours.device):
        logprob = ours.model(batch.to(ours.device)).logprob.tolist()
    step = partial(ours.step, [batch])
    first = seconds_of(step)
    seconds = median(seconds_of(step) for _ in range(rounds))
    state = [value for each in ours.optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    peak = peak_of_tensors(step, [*ours.model.parameters(), *state])
    # torch counts what it runs itself, and sdpa is no compiled kernel; attention is left out of the count anyway
    ours.model.settings = replace(ours.settings, attention="sdpa")
    products = count_products(step)
    return {
        "row_tokens": batch.num_tokens,
        "responses": batch.num_responses,
        "first_step_seconds": first,
        "seconds": seconds,
        "row_tokens_per_second": batch.num_tokens / seconds,
        "products": products,
        "products_per_second": round(products / seconds),
        "peak_mib": peak,
        "logprob": logprob,
    }


def predict(folder: str, settings: ModelSettings, ours: OurStep, batch: PackedBatch) -> float:
    """MiB that `plan=true` predicts for a step on one row."""
    found = footprint(folder, settings).predict(
        row_tokens=batch.num_tokens,
        label_tokens=len(batch.label_ids),
        visual_tokens=num_visual(ours, batch),
        num_groups=len(batch.keys),
        num_shards=1,
    )
    return found["total"] / MIB


def num_visual(ours: OurStep, batch: PackedBatch) -> int:
    """Tokens of a batch that stand for pictures: what `--visual` names is exact for patches of 16."""
    return int((batch.input_ids == ours.model.backbone.config.image_token_id).sum())


def machine(device: str) -> dict[str, Any]:
    """What is measured on: device, versions, and the rate of a large product in bfloat16."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers_version,
        "matmul_per_second": round(matmul_rate(device, torch.bfloat16)),
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "device": card.name,
            "memory_gib": card.total_memory / 2**30,
            "capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", action="store_true", help="say what is measured on, and no more")
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--visual", type=int, nargs="+", choices=VISUALS, default=[7000, 1176], help="the first that fits"
    )
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--weights", choices=("float32", "bf16", *QUANTIZED), default="float32")
    parser.add_argument("--language", choices=("full", "lora"), default="full")
    parser.add_argument("--attention", choices=ATTENTION, default="auto")
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in backward")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line."""
    options = read_options(arguments)
    if options.machine:
        report(benchmark="machine", **machine(options.device))
        return
    asked = {name: getattr(options, name) for name in ("shape", "device", "weights", "language", "attention")}
    report(benchmark="device_step", **asked, checkpointing=options.checkpointing, **measure(options))


if __name__ == "__main__":
    main()
