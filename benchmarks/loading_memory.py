"""Peak host memory of loading a checkpoint, against what the loaded weights take.

    python -m benchmarks.loading_memory
    python -m benchmarks.loading_memory --shape 7b --layers 4 --weights int8 nf4     # the widths of 7B

Writes a random checkpoint of LLaVA-OneVision's architecture in bf16, in shards, and loads it in a fresh process for
each way of storing weights. One JSON line each: MiB of the loaded weights, MiB that the process held at most while it
loaded (more than before), and their ratio. Pages of the checkpoint's files that the kernel may drop at any time are not
held; `mapped` says how much of them was in memory at most, on a machine that had room for them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from benchmarks.workload import SHAPES, Shape, write_config
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings

MIB = 2**20
WAYS = ("float32", "bf16", "int8", "nf4")
# 280M parameters: large enough for weights to outweigh what a process holds besides
MEDIUM = Shape(1536, 12, 8, 8, 3072, 512, 128, 2, 2, 256, patch=16)


def build(folder: Path, shape: Shape) -> None:
    """Write the checkpoint, in bf16."""
    config = write_config(shape, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="200MB")


def measure(folder: Path, weights: str) -> dict[str, float | str]:
    """Load in this process, which must not have done so before."""
    settings = ModelSettings(weights=weights, precision="bf16", projector="frozen", language="lora")
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(_held())
            time.sleep(0.001)

    if weights in ("int8", "nf4"):
        import bitsandbytes  # noqa: F401  # its own code is no part of loading
    before = _held()
    watcher = threading.Thread(target=watch)
    watcher.start()
    backbone, _ = load_backbone(folder, settings)
    done.set()
    watcher.join()
    tensors = [*backbone.parameters(), *backbone.buffers()]
    final = sum(each.numel() * each.element_size() for each in {id(each): each for each in tensors}.values())
    peak = max(held for held, _ in seen) - before[0]
    mapped = max(file for _, file in seen) - before[1]
    return {
        "weights": weights,
        "final_mib": round(final / MIB, 1),
        "peak_mib": round(peak / MIB, 1),
        "ratio": round(peak / final, 3),
        "mapped_mib": round(mapped / MIB, 1),
    }


def _held() -> tuple[int, int]:
    """Bytes of this process that only it has, and of files mapped into it."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").strip().split("\n")
    )
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="of 280M parameters unless given")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, so that it loads anywhere")
    parser.add_argument("--weights", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.load:
        print(json.dumps(measure(options.load, options.weights[0])))
        return
    shape = SHAPES[options.shape] if options.shape else MEDIUM
    with tempfile.TemporaryDirectory() as place:
        build(Path(place), replace(shape, layers=options.layers) if options.layers else shape)
        for weights in options.weights:
            command = [sys.executable, "-m", "benchmarks.loading_memory", "--load", place, "--weights", weights]
            subprocess.run(command, stderr=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
