"""The data plane at its size: start-up and resume with a million queries, the loader against what decoding allows.

    python -m benchmarks.data_plane
    python -m benchmarks.data_plane --pictures FOLDER     # your own JPEG and PNG files beside the drawn ones

Prints one JSON line. The million queries are an index of empty shards, because nothing but the index is read at the
start. The loader's share, at two sizes of picture, compares one process that runs the training loader (plan, byte
ranges, checksums, decoding, packing) with the same process that only decodes the same pictures, step by step in turns
and in CPU time, so that neighbours on the machine change both alike; encoding into tokens is left out of both. What the
loader adds to decoding is much the same for every size, so its share grows with the picture.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from mmrlhf.conversation import IMAGE, Conversation
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.module import PreferenceDataModule
from mmrlhf.feed.selection import select
from mmrlhf.media.images import decode_image
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import write_index
from mmrlhf.shards.scan import SCHEMA, ShardScan
from mmrlhf.shards.writer import write_shards
from mmrlhf.tensors import Branch, EncodedGroup
from mmrlhf.types import Media, PreferenceGroup, Response

MILLION, PER_SHARD = 1_000_000, 1000
PICTURES, EPOCHS, PER_STEP = 120, 12, 8
SIZES = ((640, 480), (1280, 960))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="also measure the loader on the pictures below this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        million = Path(folder) / "million"
        write_million(million)
        found: dict[str, Any] = {"benchmark": "data_plane", "groups": MILLION, **measure_start(million)}
        sets = {f"{width}x{height}": drawn(width, height) for width, height in SIZES}
        if options.pictures is not None:
            sets[str(options.pictures)] = files_below(options.pictures)
        for name, files in sets.items():
            write_shards(queries(files), Path(folder) / "shards" / name.strip("/"))
            found[name] = measure_loader(Path(folder) / "shards" / name.strip("/"))
    print(json.dumps(found))


def measure_start(folder: Path) -> dict[str, float]:
    """Seconds until the first step's groups are known, from the beginning and at the last step of the third epoch."""
    started, used = time.perf_counter(), time.process_time()
    data = open_data(folder)
    data.setup("fit")
    plan_first(data)
    start, start_cpu = time.perf_counter() - started, time.process_time() - used
    step = 3 * data.steps_per_epoch - 1
    state = data.state_dict() | {"epoch": 2, "step": step}
    started = time.perf_counter()
    data.load_state_dict(state)
    plan_first(data)
    return {
        "start_seconds": round(start, 2),
        "start_cpu_seconds": round(start_cpu, 2),
        "resume_seconds": round(time.perf_counter() - started, 2),
        "state_bytes": len(json.dumps(state)),
    }


def open_data(folder: Path) -> PreferenceDataModule:
    """Load the index, choose rows, make the data module, as a training stage does."""
    index = Index.load(folder)
    rows = select(index, "train", holdout=0.02).rows
    dataset = GroupDataset(index, Pictures())  # pyright: ignore[reportArgumentType]
    return PreferenceDataModule(
        dataset, train_indices=rows, epochs=3, groups_per_step=64, token_budget=4096, seed=0
    )  # fmt: skip


def plan_first(data: PreferenceDataModule) -> None:
    """Ask for the first step of the loader; its shards are empty, so reading them fails, after the plan is made."""
    try:
        next(iter(data.train_dataloader()))
    except ValueError:
        return
    raise RuntimeError("the empty shards were read")


def measure_loader(folder: Path) -> dict[str, float]:
    """Queries per CPU second of the loader and of decoding alone: each step, then its pictures; the medians of both."""
    index = Index.load(folder)
    groups = [index.read(row) for row in range(PICTURES)]
    media = {group.key: group.media[0].data[0] for group in groups}
    module = PreferenceDataModule(
        GroupDataset(index, Pictures()),  # pyright: ignore[reportArgumentType]
        train_indices=range(PICTURES), epochs=EPOCHS, groups_per_step=PER_STEP, token_budget=4096, seed=0,
    )  # fmt: skip
    loading, decoding = [], []
    steps = iter(module.train_dataloader())
    for _ in range(module.total_steps):
        started = time.process_time()
        step = next(steps)
        loaded = time.process_time()
        for key in (key for micro in step.micro_batches for key in micro.keys):
            pixels(media[key])
        loading.append(loaded - started)
        decoding.append(time.process_time() - loaded)
    limit, loader = PER_STEP / statistics.median(decoding), PER_STEP / statistics.median(loading)
    return {
        "decode_per_second": round(limit, 1),
        "loader_per_second": round(loader, 1),
        "loader_share": round(loader / limit, 3),
        "added_ms_per_query": round(1000 * (1 / loader - 1 / limit), 2),
    }


def pixels(data: bytes) -> torch.Tensor:
    """Decode a picture (H, W, 3) uint8."""
    return torch.from_numpy(np.array(decode_image(data, where="benchmark")))


class Pictures:
    """Stands for the encoder: decodes the picture and gives every group the same handful of tokens."""

    def __init__(self) -> None:
        self._prefix, self._prefix_positions = torch.ones(8, dtype=torch.long), torch.arange(8)[None]
        self._branch = torch.ones(1, dtype=torch.long), torch.full((1, 1), 8), torch.ones(1, dtype=torch.bool)

    def estimate_tokens(self, entry: Any) -> int:
        """Every group is alike."""
        return 16

    def __call__(self, group: PreferenceGroup) -> EncodedGroup:
        """Decode, as every encoder does first."""
        branches = tuple(Branch(*self._branch, response.hash) for response in group.responses)
        return EncodedGroup(
            key=group.key,
            prefix_ids=self._prefix,
            prefix_positions=self._prefix_positions,
            branches=branches,
            media={"pixels": pixels(group.media[0].data[0])},
            num_images=1,
            num_videos=0,
            pairs=group.ranked_pairs(),
        )


def queries(files: Sequence[tuple[str, bytes]]) -> list[PreferenceGroup]:
    """Queries with one of these pictures (suffix, bytes) and four responses each, as many as are measured."""
    responses = tuple(Response(f"answer {place}", rank=place + 1) for place in range(4))
    taken = zip(range(PICTURES), itertools.cycle(files), strict=False)
    return [
        PreferenceGroup(
            f"q{number}",
            Conversation.about("what?", [IMAGE]),
            responses,
            media=(Media("image", (f"0.{suffix}",), (data,)),),
        )
        for number, (suffix, data) in taken
    ]


def files_below(folder: Path) -> list[tuple[str, bytes]]:
    """Pictures below a folder, as (suffix, bytes)."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"no .jpg, .jpeg or .png below {folder}")
    return [(path.suffix[1:].lower(), path.read_bytes()) for path in paths[:PICTURES]]


def drawn(width: int, height: int) -> list[tuple[str, bytes]]:
    """Photograph-like JPEGs (about 0.3 bytes a pixel), as (suffix, bytes)."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        rough = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(rough).astype(np.int16) + rng.integers(-9, 9, (height, width, 3))
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        files.append(("jpg", buffer.getvalue()))
    return files


def write_million(folder: Path) -> None:
    """Write the index of a million queries, and shards of the size that the manifest says, without content."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    scans = []
    for number in range(MILLION // PER_SHARD):
        name, size = f"shard-{number:05d}.tar", PER_SHARD * 80_000
        with (folder / name).open("wb") as file:
            file.truncate(size)
        scans.append(ShardScan(name, size, f"{number:064x}", _rows(name, number, rng)))
    write_index(folder, scans)


def _rows(shard: str, number: int, rng: np.random.Generator) -> pa.Table:
    n = PER_SHARD
    starts = np.arange(n) * 80_000
    columns = SimpleNamespace(**{name: [None] * n for name in SCHEMA.names})
    columns.key = [f"query-{number * n + i:07d}" for i in range(n)]
    columns.shard = [shard] * n
    columns.member_names = [["json", "0.jpg"]] * n
    columns.member_offsets = [[start + 512, start + 5120] for start in starts.tolist()]
    columns.member_sizes = [[4000, 70_000]] * n
    columns.member_crc32 = [[7, 7]] * n
    columns.num_responses, columns.num_pairs, columns.rank_range = [4] * n, [6] * n, [3] * n
    columns.category = rng.choice(["long", "short", "mcq", "safety"], n).tolist()
    columns.num_images, columns.image_sizes, columns.video_size = [1] * n, [[640, 480]] * n, [[]] * n
    columns.num_frames, columns.duration = [0] * n, [0.0] * n
    columns.text_chars, columns.critique_chars = rng.integers(50, 3000, n).tolist(), [0] * n
    columns.split_hash = rng.random(n).tolist()
    return pa.table([pa.array(getattr(columns, item.name), item.type) for item in SCHEMA], schema=SCHEMA)


if __name__ == "__main__":
    main()
