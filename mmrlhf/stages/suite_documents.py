"""Stage `suite_documents`: the questions of a suite of benchmarks, with their pictures, ready to be asked."""

from __future__ import annotations

import logging
from collections import Counter
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
    read_about,
    read_questions,
    standin_place,
)
from mmrlhf.suites.own_benchmarks import OWN
from mmrlhf.suites.published_rows import fetch, pinned_revisions, read_rows, revision_of
from mmrlhf.suites.standins import STANDINS, write_standin
from mmrlhf.summaries.suites import BenchmarkSource, SuiteDocuments
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

BENCHMARKS = {**COLUMNS, **OWN}
# the benchmark whose judge can be asked in other words than ours
PROMPTED = "mmhal_bench"

# another number builds the stage anew, whatever `code` says
VERSION = 5
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
        folders: benchmark -> folder of its Parquet files, instead of the hub, or of a stand-in.
        revisions: benchmark -> commit or branch of its data set on the hub, instead of the one that
            `mmrlhf/suites/revisions.yaml` pins; of those that it lacks, the newest is read and written down.
        drawn: draw stand-ins in the published columns instead of reading real data.
        skip_absent: leave out, and list, benchmarks that cannot be read; false: that ends the run.
        prompts: benchmark -> file with the words that its judge is asked with, `{}` for contents, question, reference
            and answer (MMHal-Bench's official prompt).
        harness: Python of the environment that has lmms-eval, for its tasks: those that we have not, and `lmms:NAME`.
        longest_answer: tokens that an answer may have at most, where a benchmark allows more.
        seed: chooses documents, draws stand-ins.

    Raises:
        ConfigError: an unknown benchmark, none at all, or words for a judge that cannot be.
        DataError: benchmarks cannot be read; one screen says which, and how to give each.
    """
    check_settings({"tasks": tasks, "folders": folders, "revisions": revisions, "prompts": prompts})
    out.mkdir(parents=True, exist_ok=True)
    words = {task: _judge_prompt(task, path) for task, path in (prompts or {}).items()}
    folders, revisions, limits = folders or {}, revisions or {}, limits or {}
    orders = [_order(task, limits.get(task, limit), seed, folders.get(task), revisions, drawn) for task in tasks]
    store, found, counts, sources = DocumentStore(out), list[Document](), dict[str, int](), dict[str, BenchmarkSource]()
    absent = _ask_harness(out, harness, [order for order in orders if order.task not in BENCHMARKS])
    there = [order for order in orders if order.task not in absent]
    for order in track(there, "benchmarks", enabled=runtime.progress):
        try:
            folder = _folder(out, order) if order.task in BENCHMARKS else None
            own = list(_documents(store, order, folder, out, longest_answer, words.get(order.task)))
        except (DataError, HubError) as error:
            absent[order.task] = f"{error.problem}: {error.given or error.where}"
            continue
        sources[order.task] = _source(order, folder, out, folders.get(order.task), order.task in revisions)
        found += own
        counts[order.task] = len(own)
    if absent and (not skip_absent or not found):
        raise _absent(absent, {order.task: order.revision for order in orders}, revisions)
    for task, why in absent.items():
        log.warning("benchmark %s is left out: %s", task, why)
    store.write(found)
    came = {task: source.revision for task, source in sources.items() if source.revision}
    if loose := ", ".join(f"{task}: {commit}" for task, commit in came.items() if sources[task].chosen == "newest"):
        log.info("the same data again, wherever: suite.revisions={%s}", loose)
    return SuiteDocuments(counts, store.num_media(), absent, came, sources).write(out)


def _order(
    task: str, limit: int | None, seed: int, folder: str | None, revisions: Mapping[str, str], drawn: bool
) -> Order:
    """What is read of a benchmark: a folder that is given, else a stand-in where these are drawn, else a commit."""
    if folder is None and not drawn:
        pinned = pinned_revisions().get(task.removeprefix(PREFIX))
        return Order(task, limit, seed, revision=revisions.get(task, pinned))
    if task in revisions:
        instead = "a stand-in is drawn" if folder is None else f"{folder} is read"
        log.warning("suite.revisions: %s is not used for %s, of which %s", revisions[task], task, instead)
    return Order(task, limit, seed, data=None if folder is None else _own_folder(task, folder), drawn=folder is None)


def _own_folder(task: str, folder: str) -> str:
    """A folder of the user's, absolute; raises ConfigError where it begins with somebody's home who is not there."""
    try:
        return str(expanded(folder).absolute())
    except ConfigError as error:
        error.where = f"suite.folders.{task}"
        raise


def _source(order: Order, folder: Path | None, out: Path, typed: str | None, given: bool) -> BenchmarkSource:
    """Where a benchmark's questions were read from; a folder of the user's as it was `typed`."""
    if folder is not None:
        columns, about = BENCHMARKS[order.task], {"revision": revision_of(folder)}
        data, split = columns.repo + (f", {columns.subset}" if columns.subset else ""), columns.split
    else:
        about = read_about(order.place(out))
        data, split = about["data"], about["split"]
    program = {name: about.get(name) for name in ("program", "task_version")}
    if order.drawn or typed is not None:
        return BenchmarkSource(typed or "drawn here", split, **program)
    chosen = "given" if given else "newest" if order.revision is None else "pinned"
    return BenchmarkSource(data, split, about["revision"], chosen, **program)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse unknown benchmarks, and words for judges that have their own (ConfigError), before anything is read."""
    tasks = settings.get("tasks") or {}
    if not tasks:
        raise ConfigError("a suite has no benchmark", where="suite.tasks", expected="[pope, mmstar]")
    known = {**BENCHMARKS, **known_tasks()}
    names = Counter(task if task in BENCHMARKS else f"{PREFIX}{task.removeprefix(PREFIX)}" for task in tasks)
    if twice := [task for task, times in names.items() if times > 1]:
        raise ConfigError(
            "a benchmark is there twice", where="suite.tasks", given=", ".join(twice), expected="each once"
        )
    for task in tasks:
        if task not in known and not task.startswith(PREFIX) and (near := suggestion(task, known)):
            raise ConfigError(
                "there is no such benchmark",
                where="suite.tasks", given=task,
                expected="one of " + ", ".join(BENCHMARKS) + f", or, as {PREFIX}{task}, a task of lmms-eval", fix=near,
            )  # fmt: skip
    for argument in ("folders", "revisions"):
        for task in settings.get(argument) or {}:
            if task not in known and task not in tasks:
                raise ConfigError(
                    "there is no such benchmark",
                    where=f"suite.{argument}", given=task, expected="one of " + ", ".join(tasks),
                    fix=suggestion(task, {*known, *tasks}),
                )  # fmt: skip
    for task, folder in (settings.get("folders") or {}).items():
        _own_folder(task, folder)
    for task in settings.get("prompts") or {}:
        if task != PROMPTED:
            raise ConfigError(
                "the judge of this benchmark is asked in words of its own",
                where="suite.prompts", given=task, expected=PROMPTED,
            )  # fmt: skip


def _judge_prompt(task: str, path: str) -> str:
    """The words that a judge is asked with; raises ConfigError where they have not four places to fill."""
    marks = "\0\1\2\3"
    try:
        text = read_regular(expanded(path), what="prompt of a judge").decode()
        fits = set(marks) <= set(text.format(*marks))
    except (ValueError, LookupError, AttributeError):
        fits = False
    if not fits:
        raise ConfigError(
            "a judge cannot be asked with these words",
            where=f"suite.prompts.{task}", given=path,
            expected="a text in UTF-8 with four `{}`, for contents, question, reference and answer",
            fix="write {{ and }} for braces that stay",
        )  # fmt: skip
    return text


def _ask_harness(out: Path, python: str, orders: Sequence[Order]) -> dict[str, str]:
    """Have lmms-eval write its tasks' questions; returns the tasks that are absent with it, with why."""
    if not orders:
        return {}
    for order in orders:
        if order.drawn:
            _draw(out, order)
    try:
        Harness(python).write_documents(out, orders)
    except ConfigError as error:
        return {order.task: f"{error.problem}; {error.given}; {error.fix}" for order in orders}
    return {}


def _draw(out: Path, order: Order) -> Path:
    """The stand-in of a benchmark, drawn."""
    if order.bare not in STANDINS:
        raise ConfigError(
            "there is no stand-in of this benchmark",
            where="suite.tasks", given=order.bare, expected="one of " + ", ".join(STANDINS), fix="suite.drawn=false",
        )  # fmt: skip
    place = standin_place(out, order.bare)
    return write_standin(order.bare, place, documents=order.limit or 60, seed=order.seed)


def _documents(
    store: DocumentStore, order: Order, folder: Path | None, out: Path, longest: int | None, words: str | None
) -> Iterator[Document]:
    if folder is not None:
        yield from _our_documents(store, order, folder, longest, words)
    else:
        yield from _their_documents(store, order, out, longest)


def _their_documents(store: DocumentStore, order: Order, out: Path, longest: int | None) -> Iterator[Document]:
    """What the harness asks, its pictures stored once."""
    title, dimension = described(order.task)
    for name, asked, most in read_questions(order.task, order.place(out)):
        yield Document(
            order.task, name, title, dimension, asked.prompt, store.keep(asked.media), asked.truth,
            min(most, longest or most),
        )  # fmt: skip
    forget_media(order, out)


def _folder(out: Path, order: Order) -> Path:
    if order.data is not None:
        return Path(order.data)
    return _draw(out, order) if order.drawn else fetch(BENCHMARKS[order.task], order.revision)


def _our_documents(
    store: DocumentStore, order: Order, folder: Path, longest: int | None, words: str | None
) -> Iterator[Document]:
    columns: Columns = BENCHMARKS[order.task]
    more = {} if words is None else {"prompt": words}
    for number, row in read_rows(folder, columns, limit=order.limit, seed=order.seed):
        asked = columns.read(row, f"{folder}, row {number}")
        yield Document(
            task=order.task,
            name=str(number),
            title=columns.title,
            dimension=columns.dimension,
            prompt=asked.prompt,
            media=store.keep(asked.media),
            truth={**asked.truth, **more},
            max_new_tokens=min(columns.max_new_tokens, longest or columns.max_new_tokens),
        )


def _published(task: str, revision: str | None) -> str:
    columns = BENCHMARKS.get(task)
    at = f" at {revision}" if revision else ""
    return f"{columns.repo}{at}, {columns.split}" if columns is not None else f"lmms-eval's own{at}"


def _absent(absent: Mapping[str, str], revisions: Mapping[str, str | None], given: Mapping[str, str]) -> UserError:
    wanted = [f"{task}: {_published(task, revisions.get(task))}; {why}" for task, why in absent.items()]
    pinned = [task for task in absent if revisions.get(task) and task not in given]
    newest = f"; suite.revisions={{{', '.join(f'{task}: main' for task in pinned)}}} reads the newest" if pinned else ""
    return DataError(
        "benchmarks are not there",
        where="suite.tasks",
        given=Lines(wanted),
        expected="a hub that can be reached, or a folder of each data set's Parquet files",
        fix=f"suite.folders={{{', '.join(f'{task}: DIR' for task in absent)}}}, or suite.skip_absent=true{newest}",
    )
