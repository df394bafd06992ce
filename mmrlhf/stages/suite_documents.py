"""Stage `suite_documents`: the questions of a suite of benchmarks, with their pictures, ready to be asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.chain.order import suggestion
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, HubError, Lines, UserError
from mmrlhf.files import expanded, read_regular
from mmrlhf.ranges import Count, Natural
from mmrlhf.suites.columns import COLUMNS, Columns
from mmrlhf.suites.documents import Document, DocumentStore
from mmrlhf.suites.harness import (
    PREFIX,
    Harness,
    Order,
    described,
    forget_media,
    known_tasks,
    read_questions,
    standin_place,
)
from mmrlhf.suites.own_benchmarks import OWN
from mmrlhf.suites.published_rows import fetch, read_rows
from mmrlhf.suites.standins import STANDINS, write_standin
from mmrlhf.summaries.suites import SuiteDocuments
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

BENCHMARKS = {**COLUMNS, **OWN}

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("documents.jsonl", "metrics.json")


def run(
    out: Path,
    *,
    tasks: Sequence[str],
    limit: Count | None = None,
    limits: Mapping[str, Count] | None = None,
    folders: Mapping[str, str] | None = None,
    revisions: Mapping[str, str] | None = None,
    drawn: bool = False,
    skip_absent: bool = False,
    longest_answer: Count | None = None,
    prompts: Mapping[str, str] | None = None,
    harness: str = ".venv-benchmarks/bin/python",
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/documents.jsonl` and `out/media`.

    Args:
        tasks: benchmarks.
        limit: documents of each at most, drawn at random.
        limits: of some of them, in place of `limit`.
        folders: benchmark -> folder of its Parquet files, instead of the hub.
        revisions: benchmark -> revision of its data set on the hub.
        drawn: draw stand-ins in the published columns instead of reading real data.
        skip_absent: leave out, and list, benchmarks that cannot be read; false: that ends the run.
        prompts: benchmark -> file with the words that its judge is asked with, `{}` for contents, question, reference
            and answer (MMHal-Bench's official prompt).
        harness: Python of the environment that has lmms-eval, for its tasks: those that we have not, and `lmms:NAME`.
        longest_answer: tokens that an answer may have at most, where a benchmark allows more.
        seed: chooses documents, draws stand-ins.

    Raises:
        ConfigError: an unknown benchmark, none at all.
        DataError: benchmarks cannot be read; one screen says which, and how to give each.
    """
    check_settings({"tasks": tasks})
    out.mkdir(parents=True, exist_ok=True)
    store, absent, counts = DocumentStore(out), dict[str, str](), dict[str, int]()
    found: list[Document] = []
    orders = {
        task: Order(
            task, (limits or {}).get(task, limit), seed, (folders or {}).get(task), (revisions or {}).get(task), drawn
        )
        for task in tasks
        if task not in BENCHMARKS
    }
    if orders:
        for order in orders.values() if drawn else ():
            _draw(out, order.bare, order.limit, seed)
        try:
            Harness(harness).write_documents(out, list(orders.values()))
        except ConfigError as error:
            if not skip_absent:
                raise
            absent = {task: error.problem for task in orders}
    for task in track([task for task in tasks if task not in absent], "benchmarks", enabled=runtime.progress):
        most = (limits or {}).get(task, limit)
        try:
            if task in orders:
                own = list(_their_documents(store, orders[task], out, longest_answer))
            else:
                folder = _folder(out, task, most, folders or {}, revisions or {}, drawn, seed)
                own = list(_documents(store, task, folder, most, longest_answer, (prompts or {}).get(task), seed))
        except (DataError, HubError) as error:
            absent[task] = f"{error.problem}: {error.given or error.where}"
            continue
        found += own
        counts[task] = len(own)
    if absent and (not skip_absent or not found):
        raise _absent(absent)
    for task, why in absent.items():
        log.warning("benchmark %s is left out: %s", task, why)
    store.write(found)
    return SuiteDocuments(counts, store.num_media(), absent).write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse unknown benchmarks (ConfigError) before anything is read."""
    tasks = settings.get("tasks") or {}
    if not tasks:
        raise ConfigError("a suite has no benchmark", where="suite.tasks", expected="[pope, mmstar]")
    known = {**BENCHMARKS, **known_tasks()}
    for task in tasks:
        if task not in known and not task.startswith(PREFIX) and (near := suggestion(task, known)):
            raise ConfigError(
                "there is no such benchmark",
                where="suite.tasks", given=task,
                expected="one of " + ", ".join(BENCHMARKS) + f", or, as {PREFIX}{task}, a task of lmms-eval", fix=near,
            )  # fmt: skip


def _draw(out: Path, task: str, limit: int | None, seed: int) -> Path:
    """The stand-in of a benchmark, drawn."""
    if task not in STANDINS:
        raise ConfigError(
            "there is no stand-in of this benchmark",
            where="suite.tasks", given=task, expected="one of " + ", ".join(STANDINS), fix="suite.drawn=false",
        )  # fmt: skip
    return write_standin(task, standin_place(out, task), documents=limit or 60, seed=seed)


def _their_documents(store: DocumentStore, order: Order, out: Path, longest: int | None) -> Iterator[Document]:
    """What the harness asks, its pictures stored once."""
    title, dimension = described(order.task)
    for name, asked, most in read_questions(order.task, order.place(out)):
        yield Document(
            order.task, name, title, dimension, asked.prompt, store.keep(asked.media), asked.truth,
            min(most, longest or most),
        )  # fmt: skip
    forget_media(order, out)


def _folder(
    out: Path,
    task: str,
    limit: int | None,
    folders: Mapping[str, str],
    revisions: Mapping[str, str],
    drawn: bool,
    seed: int,
) -> Path:
    if task in folders:
        return Path(folders[task])
    if drawn:
        return _draw(out, task, limit, seed)
    return fetch(BENCHMARKS[task], revisions.get(task))


def _documents(
    store: DocumentStore, task: str, folder: Path, limit: int | None, longest: int | None, prompt: str | None, seed: int
) -> Iterator[Document]:
    columns: Columns = BENCHMARKS[task]
    more = {} if prompt is None else {"prompt": read_regular(expanded(prompt), what="prompt of a judge").decode()}
    for number, row in read_rows(folder, columns, limit=limit, seed=seed):
        asked = columns.read(row, f"{folder}, row {number}")
        yield Document(
            task=task,
            name=str(number),
            title=columns.title,
            dimension=columns.dimension,
            prompt=asked.prompt,
            media=store.keep(asked.media),
            truth={**asked.truth, **more},
            max_new_tokens=min(columns.max_new_tokens, longest or columns.max_new_tokens),
        )


def _published(task: str) -> str:
    columns = BENCHMARKS.get(task)
    return f"{columns.repo}, {columns.split}" if columns is not None else "lmms-eval's own"


def _absent(absent: Mapping[str, str]) -> UserError:
    wanted = [f"{task}: {_published(task)}; {why}" for task, why in absent.items()]
    return DataError(
        "benchmarks are not there",
        where="suite.tasks",
        given=Lines(wanted),
        expected="a hub that can be reached, or a folder of each data set's Parquet files",
        fix=f"suite.folders={{{', '.join(f'{task}: DIR' for task in absent)}}}, or suite.skip_absent=true",
    )
