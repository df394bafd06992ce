"""Look for inputs that break a law: all hypothesis tests with new random examples, again and again, until time is up.

`make fuzz MINUTES=30`. What it finds is printed with the command that shows it again, and becomes an `@example` of the
test; the exit code is 1 then. The default run of the tests always takes the same examples.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FILES_AT_ONCE = 4
SECONDS_TO_END = 60.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)


def files_with_laws(folder: Path) -> list[Path]:
    """Test files that have a law for hypothesis."""
    return [file for file in sorted(folder.rglob("test_*.py")) if "@given" in file.read_text(encoding="utf-8")]


def rounds(files: Sequence[Path], order: random.Random) -> Iterator[list[Path]]:
    """Yield a few files at a time, all of them in every round, each round in another order, without an end."""
    while True:
        shuffled = order.sample(files, len(files))
        yield from (shuffled[start : start + FILES_AT_ONCE] for start in range(0, len(shuffled), FILES_AT_ONCE))


def run_tests(files: Sequence[Path], seed: int, seconds: float) -> str:
    """Run the laws of some files with one seed and return what pytest says; after that many seconds it is stopped."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "hypothesis and not gpu", f"--hypothesis-seed={seed}"]
    command += ["-p", "no:cacheprovider", "-o", "timeout=1200", *map(str, files)]
    environment = {**os.environ, "MMRLHF_HYPOTHESIS": "fuzz"}
    child = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    try:
        return child.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # pytest still tells what failed before
    try:
        return child.communicate(timeout=SECONDS_TO_END)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        return child.communicate()[0]


def failures(said: str) -> list[str]:
    """Names of the tests that failed, of what pytest printed."""
    return _FAILED.findall(said)


def explore(folder: Path, minutes: float, seed: int) -> list[str]:
    """Run until the time is up; returns the names of the tests that failed, each printed when it was found."""
    end, order = time.monotonic() + 60 * minutes, random.Random(seed)
    found: list[str] = []
    files, runs = files_with_laws(folder), 0
    for batch in rounds(files, order):
        left = end - time.monotonic()
        if left <= 0:
            break
        # a law that is broken is no news in the next round
        batch, number = [file for file in batch if not _broken(file, found)], order.getrandbits(32)
        said = run_tests(batch, number, left) if batch else ""
        runs += len(batch)
        for name in failures(said):
            found.append(name)
            again = f"MMRLHF_HYPOTHESIS=fuzz pytest '{name}' --hypothesis-seed={number}"
            print(f"\n{said}\nFOUND {name}\n  {again}", flush=True)
        if all(_broken(file, found) for file in files):
            break
    print(f"{len(files)} files with laws, {runs} runs of a file, seed {seed}: {len(found)} laws broken")
    return found


def _broken(file: Path, found: Sequence[str]) -> bool:
    return any(Path(name.partition("::")[0]).name == file.name for name in found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="of the order and of all examples; new each time")
    parser.add_argument("--folder", type=Path, default=PROJECT / "tests")
    given = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if given.seed is None else given.seed
    sys.exit(bool(explore(given.folder.resolve(), given.minutes, seed)))


if __name__ == "__main__":
    main()
