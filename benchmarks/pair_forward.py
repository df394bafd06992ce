"""Time and peak memory of one training step per query: packed, one row per response, all pairs one by one, and TRL.

    python -m benchmarks.pair_forward
    python -m benchmarks.pair_forward --shape small --visual 1176
    python -m benchmarks.pair_forward --visual 7000 --ways packed rows trl --rounds 1 --no-memory
    python -m benchmarks.pair_forward --shape 0.5b --device cuda --visual 7000

A step goes from a packed batch to updated weights, with the reference's log-probabilities at hand. `packed` reads
pictures and prompt once and each response once; `rows` reads the prompt with every response; `pairs` is the way of
pair-by-pair trainers on our own code: for each pair, chosen and rejected with picture and prompt. `trl` (extra `bench`)
is TRL's DPOTrainer on the same weights and records, training the same parts; its step includes its processor and the
forward of its reference, which it cannot cache for pictures, and it takes no video (576 tokens). Steps of the ways
alternate after one step of each to warm up; figures are medians of wall time and ratios medians over rounds. Peak
memory is taken in fresh processes: on a CPU what the process holds more than before the model was loaded, on a GPU the
allocator's peak. Encoding (decoding, processor, tokens) and packing are timed apart from the step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import MIB, in_fresh_process, in_turn, median_ratio, peak_memory, report, resident, seconds_of
from benchmarks.ours import OurStep
from benchmarks.theirs import TheirStep
from benchmarks.workload import SHAPES, VISUALS, build_model, make_query, single_pairs
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tensors import PackedBatch
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

WAYS = ("packed", "rows", "pairs", "trl")
Step = OurStep | TheirStep
PREPARATIONS = 5


def settings_for(options: argparse.Namespace, way: str) -> ModelSettings:
    """The frozen tower and everything else in full."""
    return ModelSettings(
        precision="bf16" if options.device == "cuda" else "float32",
        layout="packed" if way == "packed" else "rows",
        gradient_checkpointing=options.checkpointing,
        max_tokens=32768,
    )


def batches_of(step: OurStep, query: PreferenceGroup, way: str) -> list[PackedBatch]:
    """What a way forwards: the query, or every pair of it as a query of its own."""
    return [step.prepare(each) for each in (single_pairs(query) if way == "pairs" else [query])]


def open_step(folder: str, options: argparse.Namespace, way: str, query: PreferenceGroup) -> Step:
    """A trainer of the model in a folder for a query."""
    settings = settings_for(options, way)
    if way == "trl":
        return TheirStep(folder, settings, query, matched=True, device=options.device)
    return OurStep(folder, settings, device=options.device)


def action(step: Step, query: PreferenceGroup, way: str) -> Callable[[], None]:
    """What is timed: a step on a query."""
    if isinstance(step, TheirStep):
        return partial(step.train, query)
    return partial(step.step, batches_of(step, query, way))


def possible_ways(ways: Sequence[str], visual: int) -> list[str]:
    """The ways that can read such a query."""
    return [way for way in ways if way != "trl" or VISUALS[visual][0] != "frames"]


def measure(folder: str, options: argparse.Namespace, visual: int, num_responses: int) -> dict[str, Any]:
    """Times of every way for one query."""
    query = make_query(num_responses, visual, shape=SHAPES[options.shape])
    steps = {way: open_step(folder, options, way, query) for way in possible_ways(options.ways, visual)}
    ways = {way: action(step, query, way) for way, step in steps.items()}
    timings = in_turn(ways, options.rounds, warm_up=options.warm_up)
    encoder = next(step.encoder for step in steps.values() if isinstance(step, OurStep))
    encoded = encoder(query)
    encode = median(seconds_of(partial(encoder, query)) for _ in range(PREPARATIONS))
    pack = median(seconds_of(partial(pack_groups, [encoded])) for _ in range(PREPARATIONS))
    found: dict[str, Any] = {
        "prefix_tokens": len(encoded.prefix_ids),
        "row_tokens": encoded.num_tokens,
        "pairs": len(query.ranked_pairs()),
        **{f"{way}_seconds": median(timing.wall) for way, timing in timings.items()},
        "encode_seconds": encode,
        "pack_seconds": pack,
    }
    if "packed" in timings:
        packed = timings["packed"].wall
        found["pack_share"] = pack / median(packed)
        others = {way: timing.wall for way, timing in timings.items() if way != "packed"}
        found |= {f"{way}_over_packed": median_ratio(wall, packed) for way, wall in others.items()}
    return found


def memory_point(point: dict[str, Any]) -> None:
    """Print the peak of one way's step, in this process."""
    options = argparse.Namespace(**point)
    query = make_query(options.num_responses, options.visual, shape=SHAPES[options.shape])
    empty = 0 if torch.cuda.is_available() else resident()
    step = open_step(options.folder, options, options.way, query)
    report(peak_mib=peak_memory(action(step, query, options.way))["peak_mib"] - empty / MIB)


def peaks(folder: str, options: argparse.Namespace, visual: int, num_responses: int) -> dict[str, float]:
    """Peak memory of every way for one query, each in a fresh process."""
    fixed = {name: getattr(options, name) for name in ("shape", "device", "checkpointing")} | {"folder": folder}
    point = fixed | {"visual": visual, "num_responses": num_responses}
    return {
        f"{way}_peak_mib": in_fresh_process("benchmarks.pair_forward", point | {"way": way})["peak_mib"]
        for way in possible_ways(options.ways, visual)
    }


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--visual", type=int, nargs="+", choices=VISUALS, default=[0, 576, 1176])
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS[:3]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false", help="save a step of each way")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the fresh processes out")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each number of visual tokens and each K."""
    options = read_options(arguments)
    if options.point:
        memory_point(options.point)
        return
    with tempfile.TemporaryDirectory() as folder:
        build_model(SHAPES[options.shape], Path(folder))
        for visual in options.visual:
            for num_responses in options.responses:
                found = measure(folder, options, visual, num_responses)
                memory = peaks(folder, options, visual, num_responses) if options.memory else {}
                report(
                    benchmark="pair_forward",
                    shape=options.shape,
                    device=options.device,
                    threads=torch.get_num_threads(),
                    visual_tokens=visual,
                    responses=num_responses,
                    rounds=options.rounds,
                    **found,
                    **memory,
                )


if __name__ == "__main__":
    main()
