"""`make compat`: the model and chain tests with the oldest and the newest versions that pyproject.toml allows.

    python tests/compat/columns.py                                     # ten columns, one package moved in each
    python tests/compat/columns.py --only transformers-oldest transformers-newest
    python tests/compat/columns.py --tests tests/models/test_forward.py

For each column an environment is made that sees this one's packages, so that only what moves is installed, and removed
again. pip chooses what has to move with it (another transformers may want another huggingface_hub). What is not moved
stays at the versions of constraints.txt, with which `make test` runs; a column that comes out as these is not run
again. Warnings are no errors here: other versions give others. A table is written after each column, `compat.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[2]
# packages that are moved, each with what goes with its version
MOVED = {
    "transformers": ("transformers",),
    "torch": ("torch", "torchvision"),
    "lightning": ("lightning",),
    "peft": ("peft",),
    "hydra": ("hydra-core", "omegaconf"),
}
# models, chain, methods and a whole training: what touches these packages
TESTS = (
    "tests/models",
    "tests/chain",
    "tests/methods",
    "tests/training/test_fit.py",
    "tests/stages/test_mmdpo_training.py",
    "tests/stages/test_reward_training.py",
    "tests/composition",
)
_COUNTS = re.compile(r"(\d+) (passed|failed|error|errors|skipped)")
# slow machines need an hour for what takes ten minutes here
LIMIT = 3600.0


@dataclass(frozen=True)
class Column:
    """One environment: its name, and what pip is asked for."""

    name: str
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What came of a column: versions that differ from here, what pytest said last, the tests that failed."""

    column: str
    versions: Mapping[str, str]
    said: str
    failed: tuple[str, ...]
    seconds: float


def columns(requirements: Iterable[str]) -> list[Column]:
    """The oldest and the newest allowed version of each package in `MOVED`; raises KeyError for one without a range."""
    ranges = {requirement.name: requirement for requirement in map(Requirement, requirements)}
    found = []
    for name, packages in MOVED.items():
        found.append(Column(f"{name}-oldest", tuple(f"{each}=={_lowest(ranges[each])}" for each in packages)))
        found.append(Column(f"{name}-newest", tuple(f"{each}{ranges[each].specifier}" for each in packages)))
    return found


def _lowest(requirement: Requirement) -> str:
    (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return bound


def make_environment(folder: Path) -> Path:
    """Make an environment that sees the packages of this one behind its own; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    own = Path(_output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (own / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def installed(python: Path | str) -> dict[str, str]:
    """Name -> version of all that an interpreter finds; what it finds first counts."""
    code = (
        "import importlib.metadata, json;"
        "found = [(d.name.lower().replace('_', '-'), d.version) for d in importlib.metadata.distributions()];"
        "print(json.dumps(dict(reversed(found))))"
    )
    return json.loads(_output(python, "-c", code))


def run_column(column: Column, folder: Path, tests: Sequence[str]) -> Found:
    """Make a column's environment, run tests in it, and remove it."""
    started = time.monotonic()
    try:
        python = make_environment(folder)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        done = subprocess.run([*pip, *column.wanted], capture_output=True, text=True)
        if done.returncode:
            said = f"pip: {_last_line(done.stderr)}"
            return Found(column.name, {}, said, (), time.monotonic() - started)
        here, there = installed(sys.executable), installed(python)
        moved = {name: version for name, version in sorted(there.items()) if here.get(name, version) != version}
        if not moved:
            return Found(column.name, {}, "as in constraints.txt", (), time.monotonic() - started)
        said, failed = run_tests(python, tests)
        return Found(column.name, moved, said, failed, time.monotonic() - started)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_tests(python: Path, tests: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Run tests of this checkout with an interpreter; what pytest says last, and the names of those that failed."""
    command = [str(python), "-m", "pytest", "-q", "-o", "filterwarnings=default", "--disable-warnings", *tests]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    try:
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT:.0f} s", ()
    lines = done.stdout.strip().splitlines()
    said = ", ".join(" ".join(count) for count in _COUNTS.findall(lines[-1])) if lines else ""
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return said or _last_line(done.stderr or done.stdout), tuple(failed)


def table(found: Iterable[Found]) -> str:
    """What came of all columns, as Markdown."""
    rows = ["| column | versions that differ | tests | s |", "|---|---|---|---|"]
    for each in found:
        versions = ", ".join(f"{name} {version}" for name, version in each.versions.items())
        rows.append(f"| {each.column} | {versions} | {each.said} | {each.seconds:.0f} |")
    failed = [f"- {each.column}: `{name}`" for each in found for name in each.failed]
    return "\n".join([*rows, *(["", *failed] if failed else [])]) + "\n"


def _output(python: Path | str, *arguments: str) -> str:
    return subprocess.run([str(python), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the columns; 1 if a test failed or an environment could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="COLUMN", help="names of columns")
    parser.add_argument("--tests", nargs="+", metavar="TEST", default=list(TESTS))
    parser.add_argument("--out", type=Path, default=PROJECT / "outputs" / "compat")
    options = parser.parse_args(arguments)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = columns(project["dependencies"])
    unknown = set(options.only or ()) - {column.name for column in asked}
    if unknown:
        parser.error(f"no such column: {', '.join(unknown)}; there are {', '.join(each.name for each in asked)}")
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[Found] = []
    for column in asked:
        if options.only and column.name not in options.only:
            continue
        print(f"{column.name}: {' '.join(column.wanted)}", file=sys.stderr, flush=True)
        found.append(run_column(column, PROJECT / f".venv-compat-{column.name}", options.tests))
        (options.out / "compat.md").write_text(table(found), encoding="utf-8")
    print(table(found), end="")
    good = all(each.said == "as in constraints.txt" or _passed(each.said) for each in found)
    return int(not good)


def _passed(said: str) -> bool:
    return "passed" in said and not any(word in said for word in ("failed", "error"))


if __name__ == "__main__":
    sys.exit(main())
