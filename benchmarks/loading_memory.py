"""Peak host memory of loading a checkpoint, against what the loaded weights take.

    python -m benchmarks.loading_memory

Writes a random checkpoint of LLaVA-OneVision's architecture in bf16, in shards, and loads it in a fresh process for
each way of storing weights. One JSON line each: MiB of the loaded weights, MiB that the process held at most while it
loaded (more than before), and their ratio. Pages of the checkpoint's files that the kernel may drop at any time are not
held; `mapped` says how much of them was in memory at most, on a machine that had room for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from mmrlhf.models.load import load_backbone
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.settings import ModelSettings

MIB = 2**20
WAYS = ("float32", "bf16", "int8", "nf4")
TEXTS = ["a red circle above two blue squares"] * 20


def build(folder: Path, *, hidden: int, layers: int, shard: str) -> None:
    """Write the checkpoint, in bf16."""
    size = TinySize(hidden=hidden, layers=layers, heads=8, vision_hidden=128, vision_layers=2, vocabulary=512)
    build_tiny("llava_onevision", folder, texts=TEXTS, size=size)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=shard)


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


def main() -> None:
    """Measure every way in a process of its own."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
        return
    with tempfile.TemporaryDirectory() as place:
        build(Path(place), hidden=1536, layers=12, shard="200MB")
        for weights in WAYS:
            command = [sys.executable, "-m", "benchmarks.loading_memory", place, weights]
            subprocess.run(command, stderr=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
