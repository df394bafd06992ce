"""lmms-eval's tasks: their questions and their scoring, run by a program in an environment of the harness's own.

`make benchmarks-env` makes that environment; nothing here imports the harness.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import expanded, read_lines, write_json
from mmrlhf.judging.judge_model import NO_VERDICT
from mmrlhf.suites.columns import Asked
from mmrlhf.suites.gateway import ALL, Gateway
from mmrlhf.suites.published_rows import hub_answers
from mmrlhf.types import Media

PROGRAM = Path(__file__).parent / "harness_program.py"
# a task that ours has too is read and scored by the harness under this name in front
PREFIX = "lmms:"
FOLDER, ORDERS = "harness", "orders.json"
FORM = "harness"
_LONGEST_ANSWER = 1024
_TAIL = 400


@cache
def known_tasks() -> Mapping[str, Mapping[str, str]]:
    """What we know of the harness's tasks."""
    return yaml.safe_load((Path(__file__).parent / "harness_tasks.yaml").read_text(encoding="utf-8"))


def described(task: str) -> tuple[str, str]:
    """Title and dimension of a task; of one that we do not know, its name and `other`."""
    own = known_tasks().get(task.removeprefix(PREFIX), {})
    return own.get("title", task), own.get("dimension", "other")


def needs_judge(task: str) -> bool:
    """Whether a task that we know asks a judge."""
    return "verdict" in known_tasks().get(task.removeprefix(PREFIX), {})


@dataclass(frozen=True)
class Order:
    """Which documents of a task, and where its data are.

    Args:
        task: its name in the suite.
        limit, seed: so many documents, drawn; None: all.
        data: folder of Parquet files instead of the task's own data, absolute: it is read again from anywhere.
        revision: of the task's own data.
        drawn: the data are a stand-in in the documents' folder.

    Of data, revision and drawn one at most is said.
    """

    task: str
    limit: int | None
    seed: int
    data: str | None = None
    revision: str | None = None
    drawn: bool = False

    @property
    def bare(self) -> str:
        """The harness's name of the task."""
        return self.task.removeprefix(PREFIX)

    def place(self, folder: Path) -> Path:
        """What the program leaves of this task below a folder."""
        return folder.absolute() / FOLDER / self.bare

    def for_program(self, documents: Path, out: Path) -> dict[str, Any]:
        """As the program reads it."""
        data = str(standin_place(documents, self.bare)) if self.drawn else self.data
        return {**asdict(self), "task": self.bare, "data": data, "out": str(self.place(out))}


def standin_place(documents: Path, task: str) -> Path:
    """Where a stand-in is drawn, below the documents' folder."""
    return documents.absolute() / "drawn" / task


@dataclass(frozen=True)
class Harness:
    """The environment of lmms-eval.

    Args:
        python: its interpreter.
    """

    python: str

    def write_documents(self, folder: Path, orders: Sequence[Order]) -> None:
        """Write the questions of tasks below the documents' folder, and what was ordered; raises as `_run`."""
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_json(folder / FOLDER / ORDERS, [asdict(order) for order in orders])
        self._run("documents", [order.for_program(folder, folder) for order in orders], folder / FOLDER, {})

    def score(self, documents: Path, out: Path, answers: Mapping[str, Mapping[str, str]], judged: Gateway) -> None:
        """Have the tasks' own code score recorded answers, task -> name -> text; raises as `_run`.

        The data are those of the documents: of a commit that was read, whatever the hub's branches are by now.
        """
        orders = []
        for order in read_orders(documents):
            if order.task in answers:
                given = out.absolute() / FOLDER / f"{order.bare}.answers.json"
                given.parent.mkdir(parents=True, exist_ok=True)
                write_json(given, dict(answers[order.task]))
                read = replace(order, revision=read_about(order.place(documents))["revision"] or order.revision)
                orders.append({**read.for_program(documents, out), "answers": str(given)})
        address = f"{judged.address}/v1/chat/completions"
        variables = {"OPENAI_API_URL": address, "OPENAI_BASE_URL": f"{judged.address}/v1", "API_TYPE": "openai"}
        self._run("score", orders, out / FOLDER, {**variables, "MMRLHF_GATEWAY": judged.address})

    def _run(self, mode: str, orders: Sequence[Mapping[str, Any]], folder: Path, variables: Mapping[str, str]) -> None:
        """Run the program over tasks; what each leaves is in its own folder.

        Raises:
            ConfigError: there is no such environment.
            DataError: the program ended before it had tried all tasks.
        """
        python = expanded(self.python)
        if not (python.is_file() and os.access(python, os.X_OK)):
            raise ConfigError(
                "lmms-eval is not there, which has an environment of its own",
                where="suite.harness", given=f"no {python}", expected="the Python of one with lmms-eval 0.7.3",
                fix="make benchmarks-env, or suite.harness=PYTHON",
            )  # fmt: skip
        order = folder.absolute() / f"{mode}.json"
        write_json(order, list(orders))
        # tasks read these when they are imported, whether or not they ask a judge
        env = {"OPENAI_API_KEY": "none", "HF_HOME": "~/.cache/huggingface", **os.environ, **variables}
        env["HF_HOME"] = str(expanded(env["HF_HOME"]))
        if not all(order["data"] for order in orders) and not hub_answers():
            # else every task of a cache that lacks it is waited for, five times and minutes long
            env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        command = [str(python.absolute()), "-P", str(PROGRAM), mode, str(order)]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        (folder / f"{mode}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            raise DataError(
                "lmms-eval's program failed",
                where=folder / f"{mode}.log", given=done.stderr.strip()[-_TAIL:] or f"exit code {done.returncode}",
                expected="lmms-eval 0.7.3 and what requirements-benchmarks.txt lists", fix="make benchmarks-env",
            )  # fmt: skip


def read_orders(documents: Path) -> list[Order]:
    """What was ordered when the documents were written."""
    return [Order(**each) for each in json.loads((documents / FOLDER / ORDERS).read_text(encoding="utf-8"))]


def forget_media(order: Order, folder: Path) -> None:
    """Remove the pictures that the program has written out, once they are stored."""
    shutil.rmtree(order.place(folder) / "media", ignore_errors=True)


def read_questions(task: str, folder: Path) -> Iterator[tuple[str, Asked, int]]:
    """Yield (name, question, longest answer) of a task that the program has written out.

    Raises:
        DataError: it could not read the task, and says why.
    """
    _check(task, folder)
    for line in read_lines(folder / "documents.jsonl"):
        if line:
            row = json.loads(line)
            media = tuple(_media(each, number) for number, each in enumerate(row["media"]))
            asked = Asked(row["prompt"], media, {"form": FORM, "target": row["target"]})
            yield row["name"], asked, row["max_new_tokens"] or _LONGEST_ANSWER


def read_about(folder: Path) -> Mapping[str, Any]:
    """Which data a task was read from, and by which harness (`harness_program.source_of`)."""
    return json.loads((folder / "about.json").read_text(encoding="utf-8"))


def _check(task: str, folder: Path) -> None:
    if (folder / "error.txt").exists():
        why = (folder / "error.txt").read_text(encoding="utf-8").strip()
        raise DataError("lmms-eval cannot use a task", where=task, given=why[-_TAIL:])


def _media(stored: Mapping[str, str], number: int) -> Media:
    path = Path(stored["path"])
    if not path.is_file():
        raise DataError("a benchmark names a file that is not there", where=path)
    if stored["kind"] == "video":
        return Media("video", (path.name,), (path.read_bytes(),))
    return Media("image", (f"{number}.png",), (path.read_bytes(),))


@dataclass(frozen=True)
class HarnessScore:
    """What a task's own code says of one answer: its number, or why there is none."""

    score: float | None
    reason: str = ""


def read_scores(task: str, folder: Path, judged: Gateway) -> dict[str, HarnessScore]:
    """Every document's number of a task that the program has scored.

    Raises:
        DataError: the task could not be scored, or its numbers over all documents asked a judge in vain.
    """
    _check(task, folder)
    bare = task.removeprefix(PREFIX)
    if why := judged.missing.get(f"{bare}/{ALL}"):
        raise DataError("verdicts are missing", where=task, given=why, fix="run the same command again")
    found: dict[str, HarnessScore] = {}
    for line in read_lines(folder / "scores.jsonl"):
        row = json.loads(line) if line else None
        if row is not None:
            found[row["name"]] = _score(bare, row, judged.missing.get(f"{bare}/{row['name']}"))
    return found


def _score(task: str, row: Mapping[str, Any], missing: str | None) -> HarnessScore:
    if missing is not None:
        return HarnessScore(None, NO_VERDICT)
    if "error" in row:
        return HarnessScore(None, f"lmms-eval: {row['error'].partition(':')[0]}")
    value = number_of(row["metrics"], known_tasks().get(task, {}).get("score"))
    return HarnessScore(value, "" if value is not None else "lmms-eval gives no number for a document")


def number_of(metrics: Mapping[str, Any], place: str | None) -> float | None:
    """A document's number: at a place (`metric.key`, or `metric.key == metric.key`), else the first that is one."""
    if place is not None and "==" in place:
        one, other = (_at(metrics, side.strip()) for side in place.split("=="))
        return None if one is None or other is None else float(str(one).strip().lower() == str(other).strip().lower())
    found = _at(metrics, place) if place is not None else _first(metrics)
    return float(found) if isinstance(found, bool | int | float) and found == found else None


def _at(metrics: Any, place: str) -> Any:
    for key in place.split("."):
        if isinstance(metrics, Mapping):
            metrics = metrics.get(key)
        elif isinstance(metrics, list) and key.isdigit() and int(key) < len(metrics):
            metrics = metrics[int(key)]
        else:
            return None
    return metrics


def _first(metrics: Mapping[str, Any]) -> Any:
    for value in metrics.values():
        found = value.get("score") if isinstance(value, Mapping) else value
        if isinstance(found, bool | int | float):
            return found
    return None
