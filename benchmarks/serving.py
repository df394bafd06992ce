"""The server against the `score` stage on the same queries, from 1, 8 and 32 clients; a soak of good and bad requests.

    python -m benchmarks.serving                          # a scalar model and one that writes critiques
    python -m benchmarks.serving --soak 10                # ten minutes of mixed requests instead
    python -m benchmarks.serving --clients 1 --stage-batch 1   # against a stage that, like one client, has no batch

Prints one JSON line for each model and number of clients, or for the soak. The model is that of
`benchmarks.scoring_rate`, about 9M parameters; a query has one picture of 256 x 256 pixels and K = 4 responses, all
pictures and prompts differ. In every round the stage scores all queries once (its own `queries_per_second`), then each
number of clients sends them all once, a client's next one when its last is answered; ratios are medians over rounds.
Where neighbours use the machine, the ratio of processor seconds says more than that of wall time: the stage's, without
what it takes for its first few queries (loading the model, the report), against the server's. The server is a process
of its own with as many threads as the stage has (`OMP_NUM_THREADS`), clients run in this one.

The soak sends good requests, whose rewards are compared with those of the first time, and bad ones of every kind, whose
status is, and reads the server's memory from its own /metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import lightning as L
import numpy as np
import torch
from PIL import Image

from benchmarks.measure import MIB, median_ratio, report
from benchmarks.scoring_rate import SIZE
from benchmarks.workload import WORDS
from mmrlhf.chain.runtime import Runtime
from mmrlhf.conversation import IMAGE, Conversation
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.load import load_backbone
from mmrlhf.models.random_checkpoints import build_tiny
from mmrlhf.models.reward_folder import save_reward_model
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import score
from mmrlhf.types import Media, PreferenceGroup, Response

PIXELS, NUM_RESPONSES, CRITIQUE_TOKENS, SOAK_CLIENTS = 256, 4, 24, 8
FEW = 4  # queries of the stage that shows what it takes beside scoring


def build_judge(folder: Path, critique: str) -> Path:
    """A random reward model's folder."""
    base = folder / "base"
    if not base.exists():
        build_tiny("llava_onevision", base, texts=[" ".join(WORDS)] * 20, size=SIZE)
    backbone, processor = load_backbone(base, ModelSettings())
    head = build_head("linear", SIZE.hidden)
    torch.nn.init.normal_(head.out.weight, generator=torch.Generator().manual_seed(0))
    card = {"critique": critique, "instruction": "judge :", "media": {}}
    save_reward_model(PackedModel(backbone, ModelSettings(), head), processor, folder / critique, card=card)
    return folder / critique


def make_queries(count: int) -> list[PreferenceGroup]:
    """Queries whose pictures, prompts and responses all differ."""
    rng, queries = np.random.default_rng(0), []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (PIXELS, PIXELS, 3), dtype=np.uint8)).save(buffer, "PNG")
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(20, 60)))) for _ in range(NUM_RESPONSES)]
        responses = tuple(Response(text, rank=rank) for rank, text in enumerate(texts, 1))
        media = (Media("image", ("0.png",), (buffer.getvalue(),)),)
        queries.append(
            PreferenceGroup(
                f"query-{number}", Conversation.about(f"describe picture {number}", [IMAGE]), responses, media
            )
        )
    return queries


def as_body(query: PreferenceGroup) -> bytes:
    """A query as the server is sent it."""
    pictures = [base64.b64encode(item.data[0]).decode() for item in query.media]
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{each}"}} for each in pictures
    ]
    parts.append({"type": "text", "text": query.prompt.question})
    responses = [response.text for response in query.responses]
    return json.dumps({"messages": [{"role": "user", "content": parts}], "responses": responses}).encode()


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The server as a process of its own; its address."""
    command = [sys.executable, "-u", "-m", "mmrlhf", "serve", f"reward_model={folder}", "port=0"]
    command.append(f"critiques.max_tokens={CRITIQUE_TOKENS}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = (re.search(r"http://\S+:\d+", line) for line in process.stdout)
        found = next((address for address in said if address), None)
        assert found, "the server did not start"
        # a line for each refusal: one that nobody takes would be waited for when the pipe is full
        threading.Thread(target=deque, args=(process.stdout, 0), daemon=True).start()
        while httpx.get(f"{found[0]}/ready", trust_env=False).status_code != 200:
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        process.wait()


async def send_all(address: str, bodies: Sequence[bytes], clients: int) -> tuple[float, list[float]]:
    """Queries a second, and seconds of each request, when so many clients send all bodies once."""
    waiting, latencies = iter(bodies), list[float]()

    async def client() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300, trust_env=False) as http:
            for body in waiting:
                started = time.perf_counter()
                answer = await post(http, body)
                latencies.append(time.perf_counter() - started)
                assert answer.status_code == 200, answer.text

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(bodies) / (time.perf_counter() - started), latencies


async def post(http: httpx.AsyncClient, body: bytes) -> httpx.Response:
    """Ask for rewards."""
    return await http.post("/v1/rewards", content=body, headers={"Content-Type": "application/json"})


def stage_rate(shards: Path, judge: Path, batch: int | None) -> tuple[float, float]:
    """Queries a second of the `score` stage, as it says them itself, and its processor seconds.

    batch: queries that it scores side by side at most; None: its own setting.
    """
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    critiques, started = CritiqueSettings(max_tokens=CRITIQUE_TOKENS), time.process_time()
    passes = PassSettings() if batch is None else PassSettings(groups_per_batch=batch)
    with tempfile.TemporaryDirectory() as out:
        summary = score.run(
            Path(out), shards=shards, reward_model=judge, passes=passes, critiques=critiques, holdout=0.5,
            runtime=runtime,
        )  # fmt: skip
    return float(summary["queries_per_second"]), time.process_time() - started


def told(address: str, name: str) -> float:
    """A number of the server's own."""
    page = httpx.get(f"{address}/metrics", trust_env=False).text
    return float(re.findall(rf"^{name} (\S+)", page, re.M)[0])


def compare(folder: Path, critique: str, options: argparse.Namespace) -> None:
    """Print the rates of one kind of model."""
    judge, queries = build_judge(folder, critique), make_queries(options.queries)
    write_shards(queries, folder / f"shards-{critique}")
    write_shards(queries[:FEW], folder / f"few-{critique}")
    bodies = [as_body(query) for query in queries]
    stage, stage_cpu = list[float](), list[float]()
    served, cpu, latencies = ({clients: list[float]() for clients in options.clients} for _ in range(3))
    with running(judge) as address:
        asyncio.run(send_all(address, bodies[:8], 4))
        stage_rate(folder / f"few-{critique}", judge, options.stage_batch)
        for _ in range(options.rounds):
            rate, used = stage_rate(folder / f"shards-{critique}", judge, options.stage_batch)
            stage.append(rate)
            start = stage_rate(folder / f"few-{critique}", judge, options.stage_batch)[1]
            stage_cpu.append((used - start) * len(bodies) / (len(bodies) - FEW))
            for clients in options.clients:
                before = told(address, "process_cpu_seconds_total")
                rate, seconds = asyncio.run(send_all(address, bodies, clients))
                cpu[clients].append(told(address, "process_cpu_seconds_total") - before)
                served[clients].append(rate)
                latencies[clients] += seconds
    for clients in options.clients:
        report(
            benchmark="serving",
            critiques=critique,
            clients=clients,
            queries=options.queries,
            responses=NUM_RESPONSES,
            rounds=options.rounds,
            stage_batch=options.stage_batch,
            threads=torch.get_num_threads(),
            stage_queries_per_second=median(stage),
            served_queries_per_second=median(served[clients]),
            ratio=median_ratio(served[clients], stage),
            ratio_by_cpu_time=median_ratio(stage_cpu, cpu[clients]),
            p50_seconds=float(np.percentile(latencies[clients], 50)),
            p95_seconds=float(np.percentile(latencies[clients], 95)),
        )


BAD: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[" * 5000, 400),
    (b'{"messages": [], "responses": ["a"]}', 422),
    (b'{"messages": [{"role": "user", "content": "?"}], "responses": []}', 422),
    (json.dumps({"messages": [{"role": "user", "content": "red " * 30000}], "responses": ["a"]}).encode(), 422),
    (json.dumps({"messages": [{"role": "user", "content": "?"}], "responses": ["a"] * 200}).encode(), 413),
    *(
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
                     "responses": ["a"]}).encode(), status)
        for url, status in (
            ("file:///etc/passwd", 403),
            ("http://169.254.169.254/latest", 403),
            ("data:image/png;base64,AAAA", 422),
            ("data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 200_000).decode(), 422),
            ("data:text/html;base64,AAAA", 422),
        )
    ),
)  # fmt: skip


async def soak(address: str, queries: Sequence[PreferenceGroup], minutes: float) -> dict[str, Any]:
    """Send good and bad requests for some minutes; what came back, and the server's memory."""
    bodies, rewards = [as_body(query) for query in queries], dict[int, list[float]]()
    counts, wrong, memory = Counter[str](), 0, list[float]()
    end = time.monotonic() + 60 * minutes

    async def client(seed: int) -> None:
        nonlocal wrong
        rng = np.random.default_rng(seed)
        async with httpx.AsyncClient(base_url=address, timeout=300, trust_env=False) as http:
            while time.monotonic() < end:
                good, number = rng.random() < 0.5, int(rng.integers(0, len(bodies)))
                body, status = (bodies[number], 200) if good else BAD[int(rng.integers(0, len(BAD)))]
                answer = await post(http, body)
                counts[str(answer.status_code)] += 1
                wrong += answer.status_code != status
                if answer.status_code == 200:
                    found = [item["reward"] for item in answer.json()["data"]]
                    wrong += not np.allclose(found, rewards.setdefault(number, found), atol=1e-3)

    async def watch() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300, trust_env=False) as http:
            while True:
                page = (await http.get("/metrics")).text
                memory.append(float(re.findall(r"^process_resident_memory_bytes (\S+)", page, re.M)[0]) / MIB)
                await asyncio.sleep(5)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(seed) for seed in range(SOAK_CLIENTS)))
    watching.cancel()
    tenth = max(1, len(memory) // 10)
    return {
        "minutes": minutes,
        "requests": sum(counts.values()),
        "by_status": dict(sorted(counts.items())),
        "lost_or_wrong": wrong,
        "memory_mib_begin": median(memory[tenth : 2 * tenth] or memory),
        "memory_mib_end": median(memory[-tenth:]),
        "memory_mib_most": max(memory),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--critiques", nargs="+", default=["none", "full"], choices=["none", "full"])
    parser.add_argument("--stage-batch", type=int, default=None, metavar="QUERIES")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.soak:
            with running(build_judge(folder, options.critiques[0])) as address:
                found = asyncio.run(soak(address, make_queries(options.queries), options.soak))
            report(benchmark="serving", soak=found)
            return
        for critique in options.critiques:
            compare(folder, critique, options)


if __name__ == "__main__":
    main()
