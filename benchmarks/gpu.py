"""Everything that one card can tell, in at most nine minutes, as one JSON file and a table for docs/performance.md.

    make gpu                                                    # or, where trl is installed:
    python -m benchmarks.gpu --out outputs/gpu
    python -m benchmarks.gpu --size tiny --device cpu           # the same parts at toy size
    python -m benchmarks.gpu --only lora qlora

The parts: what the machine is and how fast it multiplies; the tests that need a GPU; a step in the sizes of
LLaVA-OneVision 0.5B with every attention back end that `model.settings.attention` knows; steps of 7B with adapters, on
weights in bf16 and in 4 bits; and the comparison with TRL. All models have random weights, so nothing is downloaded.

Each part is a process with a time limit, and may use what is left of the whole at most. One that fails, ends too late
or finds no time is recorded as such, with its last words, and the rest goes on. The JSON file is written after each
part.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_table import table
from mmrlhf.files import write_bytes, write_json
from mmrlhf.models.settings import ATTENTION

PROJECT = Path(__file__).resolve().parents[1]
# a part with less time than this would spend it on starting
WORTH_STARTING = 5.0
LAST_WORDS = 2000


@dataclass(frozen=True)
class Size:
    """What the parts run at: shapes of the steps and of the comparison, visual tokens (the first that fit), rounds."""

    step: str
    adapters: str
    visual: tuple[int, ...]
    compared_visual: int
    responses: int
    rounds: int


SIZES = {
    "published": Size("0.5b", "7b", (7000, 1176), 7000, responses=4, rounds=3),
    "tiny": Size("tiny", "tiny", (1176,), 1176, responses=2, rounds=1),
}


@dataclass(frozen=True)
class Part:
    """A process: its name, command and the seconds it may take."""

    name: str
    command: list[str]
    limit: float


@dataclass(frozen=True)
class Outcome:
    """What became of a part: `done`, `failed`, `too long` or `no time left`; its JSON lines and last words."""

    part: str
    status: str
    seconds: float = 0.0
    results: list[dict[str, Any]] = field(default_factory=list)
    said: str = ""


def parts(size: Size, device: str) -> list[Part]:
    """All parts, what matters most first; together they may take a little more than the whole has, should all hang."""
    python = [sys.executable, "-m"]
    step = [*python, "benchmarks.device_step", "--device", device, "--rounds", str(size.rounds)]
    step += ["--responses", str(size.responses), "--visual", *map(str, size.visual)]
    adapters = [*step, "--shape", size.adapters, "--language", "lora", "--checkpointing"]
    compared = ["--visual", str(size.compared_visual), "--responses", str(size.responses), "--rounds", str(size.rounds)]
    back_ends = [name for name in ATTENTION if name != "auto"]
    return [
        Part("machine", [*python, "benchmarks.device_step", "--machine", "--device", device], 45),
        Part("tests", [*python, "pytest", "-q", "-m", "gpu", *files_of_gpu_tests()], 90),
        *(Part(f"attention={name}", [*step, "--shape", size.step, "--attention", name], 65) for name in back_ends),
        Part("lora", [*adapters, "--weights", "bf16"], 90),
        Part("qlora", [*adapters, "--weights", "nf4"], 90),
        Part("vs_trl", [*python, "benchmarks.vs_trl", "--device", device, "--shape", size.step, *compared], 180),
    ]


def files_of_gpu_tests() -> list[str]:
    """Test files with the marker; the others would be read for nothing."""
    files = sorted((PROJECT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(PROJECT)) for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def run_parts(asked: Sequence[Part], seconds: float) -> Iterator[Outcome]:
    """Run parts one after another, all in `seconds`."""
    end = time.monotonic() + seconds
    for part in asked:
        left = end - time.monotonic()
        yield run_part(part, min(part.limit, left)) if left > WORTH_STARTING else Outcome(part.name, "no time left")


def run_part(part: Part, limit: float) -> Outcome:
    """Run a part in a session of its own, which ends as a whole: tests and comparisons start processes, too."""
    started = time.monotonic()
    process = subprocess.Popen(
        part.command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},  # what a part said before its time was over is kept
    )
    status = "too long"
    try:
        out, errors = process.communicate(timeout=limit)
        status = "failed" if process.returncode else "done"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    results, others = split_lines(out)
    said = "\n".join([*others[-10:], errors.strip()] if status != "done" else others[-1:])
    return Outcome(part.name, status, round(time.monotonic() - started, 1), results, said.strip()[-LAST_WORDS:])


def split_lines(out: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The JSON objects among the lines of an output, and its other lines."""
    results, others = [], []
    for line in filter(None, map(str.strip, out.split("\n"))):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict):
            results.append(found)
        else:
            others.append(line)
    return results, others


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, write gpu.json and gpu.md, print the table; 1 if a part is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--seconds", type=float, default=530.0, help="of all parts together")
    parser.add_argument("--only", nargs="+", metavar="PART", help="names of parts, or their beginnings")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU here; --size tiny --device cpu runs the same parts at toy size")
    options.out.mkdir(parents=True, exist_ok=True)
    asked = parts(SIZES[options.size], options.device)
    if options.only:
        asked = [part for part in asked if part.name.startswith(tuple(options.only))]
    outcomes: list[Outcome] = []
    for outcome in run_parts(asked, options.seconds):
        outcomes.append(outcome)
        print(f"{outcome.part}: {outcome.status}, {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
        found = {"size": options.size, "device": options.device, "parts": [asdict(each) for each in outcomes]}
        write_json(options.out / "gpu.json", found)
        write_bytes(options.out / "gpu.md", table(found).encode())
    print((options.out / "gpu.md").read_text(encoding="utf-8"), end="")
    return int(any(outcome.status != "done" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
