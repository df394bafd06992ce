"""Seconds and peak memory of one layer's attention, forward and backward, by back end and length of the row.

    python -m benchmarks.attention
    python -m benchmarks.attention --device cuda --shape 7b --prefix 2000 8000 32000 --responses 4 --tokens 65

One group: a prefix and its responses. Queries, keys and values are random, in float32 on a CPU and in bf16 on a GPU;
each point runs in a fresh process. `peak_mib` is what a layer's attention adds to its inputs, masks included.
FlexAttention is left out on a CPU, where torch has no gradient of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import in_fresh_process, peak_memory, report, seconds_of
from benchmarks.workload import SHAPES
from mmrlhf.models.attention import SEGMENTS, packed_attention
from mmrlhf.models.layout import Layout, grouped, segmented, single_row
from mmrlhf.models.masks import AttentionPattern
from mmrlhf.tensors import Branch, EncodedGroup, PackedBatch
from mmrlhf.tokens.packing import pack_groups

BACK_ENDS = ("sdpa", "cascade", "flex")


def row(prefix: int, num_responses: int, tokens: int) -> PackedBatch:
    """A packed row of one group."""
    branches = tuple(
        Branch(
            ids=torch.zeros(tokens, dtype=torch.int64),
            positions=prefix + torch.arange(tokens)[None],
            labels=torch.ones(tokens, dtype=torch.bool),
            response_hash=str(number),
        )
        for number in range(num_responses)
    )
    ranks = {"rank": torch.arange(1.0, num_responses + 1)}
    positions = torch.arange(prefix)[None]
    return pack_groups([EncodedGroup("row", positions[0] * 0, positions, branches, {}, 0, 0, (), ranks)])


def attention(point: dict[str, Any]) -> Callable[[], None]:
    """One layer's attention, forward and backward, its layout made anew as in every micro-batch."""
    shape, device = SHAPES[point["shape"]], point["device"]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    batch = row(point["prefix"], point["responses"], point["tokens"]).to(device)
    layouts: dict[str, Callable[[], Layout]] = {
        "sdpa": lambda: grouped(batch, AttentionPattern(), dtype),
        "cascade": lambda: segmented(batch),
        "flex": lambda: single_row(batch),
    }
    make, width = layouts[point["back_end"]], shape.hidden // shape.heads
    length = make().ids.shape[1]
    query, key, value = (
        torch.randn(1, heads, length, width, device=device, dtype=dtype, requires_grad=True)
        for heads in (shape.heads, shape.key_heads, shape.key_heads)
    )
    above = torch.randn(1, length, shape.heads, width, device=device, dtype=dtype)
    module: Any = torch.nn.Module()
    module.num_key_value_groups = shape.heads // shape.key_heads

    def run() -> None:
        layout = make()
        told = {} if layout.segments is None else {SEGMENTS: layout.segments}
        mask: Any = layout.mask
        read, _ = packed_attention(module, query, key, value, mask, scaling=width**-0.5, is_causal=True, **told)
        found: tuple[Tensor, ...] = torch.autograd.grad(read, (query, key, value), above)
        del found

    return run


def measure(point: dict[str, Any]) -> None:
    """Print the line of one point, in this process."""
    run = attention(point)
    memory = peak_memory(run)
    seconds = min(seconds_of(run) for _ in range(point["rounds"]))
    report(benchmark="attention", **point, seconds=seconds, peak_mib=memory["peak_mib"] - memory["before_mib"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--back-end", choices=BACK_ENDS, nargs="+", default=list(BACK_ENDS))
    parser.add_argument("--prefix", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=65, help="of each response")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        measure(options.point)
        return
    fixed = {name: getattr(options, name) for name in ("device", "shape", "responses", "tokens", "rounds")}
    for prefix in options.prefix:
        for back_end in options.back_end:
            if back_end == "flex" and options.device == "cpu":
                continue
            point = {**fixed, "prefix": prefix, "back_end": back_end}
            print(json.dumps(in_fresh_process("benchmarks.attention", point)), flush=True)


if __name__ == "__main__":
    main()
