"""What runs in lmms-eval's own environment, as a program of its own: documents out, answers in, scores out.

    python -P harness_program.py documents ORDERS.json     rows and pictures of tasks
    python -P harness_program.py score ORDERS.json         each document's numbers, by the tasks' own code

It needs lmms-eval 0.7.3 and nothing of ours, and no model and no GPU: what is asked and how an answer is scored are the
harness's, what is said comes from our own pass. Each order says task, data set, documents and folder; one that cannot
be done leaves `error.txt` in its folder, and the others go on.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import re
import sys
import traceback
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# what the harness calls a question that is answered by a text
GENERATE = "generate_until"
# how files and folders are called after a split
_SPLIT = re.compile(r"(train|testmini|test|validation|val|dev)(?![A-Za-z0-9])")
# a folder of the hub library's cache and of the `datasets` library's is called after the commit
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


def tables_of(names: Sequence[str], subset: str | None, split: str) -> list[str]:
    """Which Parquet files of a data set hold one split of one of its subsets, by their names; sorted.

    A subset's files lie in a folder of its name; without such a folder those at the top, or in `data`, are it. A
    split's begin with its name or lie in a folder of it; where none do, those of no other split are it.

    Args:
        names: paths in the data set's folder, with `/`.
        subset: None: the data set has one alone.
        split: as the hub calls it.
    """
    tables = sorted(name for name in names if name.endswith(".parquet"))
    if subset is not None:
        own = [name for name in tables if subset in name.split("/")[:-1]]
        tables = own or [name for name in tables if name.removeprefix("data/").count("/") == 0]
    wanted = re.compile(rf"{re.escape(split)}(?![A-Za-z0-9])")
    named = [name for name in tables if any(wanted.match(part) for part in name.split("/"))]
    return named or [name for name in tables if not any(_SPLIT.match(part) for part in name.split("/"))]


def load_task(manager: Any, order: dict[str, Any]) -> tuple[Any, list[int], dict[str, Any]]:
    """The task, its data from elsewhere where the order says so and cut to the wanted documents.

    Returns these documents' numbers, too, and where they are from (`source_of`).
    """
    name = order["task"]
    if name not in manager.all_subtasks:
        raise ValueError(f"lmms-eval has no task {name}, or it is a group: name one of its tasks")
    load = importlib.import_module("lmms_eval.utils").load_yaml_config
    written = load(manager.task_index[name]["yaml_path"], mode="full")
    split = written.get("test_split") or written["validation_split"]
    # most tasks ask for a login, also where the data are public; a token that is there is used anyhow
    settings = {key: value for key, value in (written.get("dataset_kwargs") or {}).items() if key != "token"}
    changes: dict[str, Any] = {"dataset_kwargs": settings}
    if order.get("data"):
        files = {"data_files": {split: files_of(Path(order["data"]), written.get("dataset_name"), split)}}
        changes |= {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": files}
    elif order.get("revision"):
        changes |= {"dataset_kwargs": {**settings, "revision": order["revision"]}}
    (task,) = manager.load_task_or_group([{"task": name, **changes}], "chat").values()
    if not hasattr(task, "doc_to_messages") or task.OUTPUT_TYPE != GENERATE:
        raise ValueError(f"{name} is no task whose answers are texts")
    rows = chosen(len(task.dataset[split]), order)
    about = {**source_of(written, split, order, task.dataset[split]), "task_version": version_of(task)}
    for data in (task.dataset, task.dataset_no_image):
        data[split] = data[split].select(rows)
    return task, rows, about


def files_of(folder: Path, subset: str | None, split: str) -> list[str]:
    """The Parquet files of a split below a folder."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]
    found = [str(folder / name) for name in tables_of(names, subset, split)]
    if not found:
        raise ValueError(f"no Parquet files of {subset or 'the data set'}, {split}, in {folder}")
    return found


def source_of(written: dict[str, Any], split: str, order: dict[str, Any], data: Any) -> dict[str, Any]:
    """Which harness read which data: names, and the hub's commit where the files' places tell it."""
    subset = written.get("dataset_name")
    found = [_COMMIT.search(str(file["filename"])) for file in data.cache_files] if not order.get("data") else []
    return {
        "program": f"lmms-eval {importlib.metadata.version('lmms_eval')}",
        "data": order.get("data") or written["dataset_path"] + (f", {subset}" if subset else ""),
        "split": split, "revision": found[0][0] if found and found[0] else None,
    }  # fmt: skip


def version_of(task: Any) -> str | None:
    """What the harness calls the version of a task; most have none."""
    metadata = task.config.metadata
    for each in metadata if isinstance(metadata, list) else [metadata]:
        if isinstance(each, dict) and each.get("version") is not None:
            return str(each["version"])
    return None


def chosen(number: int, order: dict[str, Any]) -> list[int]:
    """Which documents: all, or so many drawn at random, in their order."""
    limit = order.get("limit")
    if limit is None or limit >= number:
        return list(range(number))
    numpy = importlib.import_module("numpy")
    return sorted(numpy.random.default_rng(order["seed"]).permutation(number)[:limit].tolist())


def instances_of(task: Any) -> list[Any]:
    """The requests of all documents."""
    task.build_all_requests(
        limit=None, offset=0, rank=0, world_size=1, cache_requests=False, rewrite_requests_cache=False,
        system_instruction=None, apply_chat_template=False, fewshot_as_multiturn=False, chat_template=None,
        tokenizer_name="",
    )  # fmt: skip
    return task.instances


def write_documents(manager: Any, order: dict[str, Any]) -> None:
    """`documents.jsonl`, `about.json` and `media/` in the order's folder."""
    out = Path(order["out"])
    (out / "media").mkdir(parents=True, exist_ok=True)
    task, rows, about = load_task(manager, order)
    (out / "about.json").write_text(json.dumps(about), encoding="utf-8")
    with (out / "documents.jsonl").open("w", encoding="utf-8") as file:
        for instance in instances_of(task):
            _, to_messages, settings, place, _, split = instance.args
            document = task.dataset[split][place]
            texts, media = [], []
            for message in to_messages(document):
                if message["role"] == "system":
                    texts.insert(0, _text(message["content"]))
                    continue
                for part in message["content"]:
                    if part["type"] == "text":
                        texts.append(part["text"])
                    else:
                        media.append(keep(part, out / "media"))
            row = {
                "name": str(rows[place]), "prompt": "\n".join(texts), "media": media,
                "target": plain(task.doc_to_target(task.dataset_no_image[split][place])),
                "max_new_tokens": (settings or {}).get("max_new_tokens"),
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def keep(part: dict[str, Any], folder: Path) -> dict[str, str]:
    """A picture as a file under its hash; a video as the path that the harness names."""
    kind = part["type"]
    value: Any = part.get("url", part.get(kind))
    if kind == "video":
        return {"kind": "video", "path": str(Path(value).resolve())}
    if kind != "image" or not hasattr(value, "save"):
        raise ValueError(f"a part of a question is neither text, picture nor video: {kind}")
    buffer = io.BytesIO()
    value.convert("RGB").save(buffer, "PNG")
    path = folder / hashlib.sha256(buffer.getvalue()).hexdigest()
    if not path.exists():
        path.write_bytes(buffer.getvalue())
    return {"kind": "image", "path": str(path.resolve())}


def write_scores(manager: Any, order: dict[str, Any]) -> None:
    """`scores.jsonl`: what the task's code says of every recorded answer; `aggregates.json`: and of all of them."""
    out, answers = Path(order["out"]), json.loads(Path(order["answers"]).read_text(encoding="utf-8"))
    task, rows, _ = load_task(manager, order)
    instances = instances_of(task)
    for instance in instances:
        instance.resps.append(answers.get(str(rows[instance.args[3]]), ""))
    task.apply_filters()
    by_place: dict[int, Any] = {instance.args[3]: instance for instance in instances}
    values: dict[str, list[Any]] = {}
    with (out / "scores.jsonl").open("w", encoding="utf-8") as file:
        for place, document in task.doc_iterator(rank=0, limit=None, world_size=1):
            name = str(rows[place])
            if name not in answers:
                continue
            announce(order["task"], name)
            said = by_place[place].filtered_resps
            try:
                found = task.process_results(document, [said[next(iter(said))]])
            except Exception as error:  # the harness's code meets a stranger's answer: one document, not the run
                file.write(json.dumps({"name": name, "error": f"{type(error).__name__}: {error}"[:300]}) + "\n")
                continue
            for metric, value in found.items():
                values.setdefault(metric, []).append(value)
            file.write(json.dumps({"name": name, "metrics": plain(found)}) + "\n")
    announce(order["task"], "(all)")
    (out / "aggregates.json").write_text(json.dumps(dict(aggregates(task, values))), encoding="utf-8")


def aggregates(task: Any, values: dict[str, list[Any]]) -> Iterator[tuple[str, float]]:
    """The task's own numbers that are numbers; one that cannot be computed is left out, with a word on stderr."""
    rules = task.aggregation()
    for metric, found in values.items():
        try:
            number = rules[metric](found)
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield metric, float(number)
        except Exception:
            print(f"{metric}: {traceback.format_exc(limit=1)}", file=sys.stderr)


def announce(task: str, name: str) -> None:
    """Tell the judge's gateway whose answer is scored from now on."""
    if address := os.environ.get("MMRLHF_GATEWAY"):
        with urllib.request.urlopen(f"{address}/document/{task}/{name}", timeout=60) as answer:
            answer.read()


def plain(value: Any) -> Any:
    """Whatever a task returns, as JSON has it; pictures and other objects by their type's name."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):  # whose order is another one in every process
        return sorted((plain(item) for item in value), key=json.dumps)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.item() if hasattr(value, "item") and getattr(value, "size", 2) == 1 else type(value).__name__


def main(mode: str, path: str) -> None:
    """Do every order; one that fails says so in its folder."""
    manager = importlib.import_module("lmms_eval.tasks").TaskManager("ERROR")
    for order in json.loads(Path(path).read_text(encoding="utf-8")):
        out = Path(order["out"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "error.txt").unlink(missing_ok=True)
        try:
            {"documents": write_documents, "score": write_scores}[mode](manager, order)
        except (Exception, SystemExit) as error:  # tasks of strangers raise anything, and some call sys.exit
            print(traceback.format_exc(), file=sys.stderr)
            cause = cause_of(error)
            (out / "error.txt").write_text(f"{type(cause).__name__}: {cause}", encoding="utf-8")


def cause_of(error: BaseException) -> BaseException:
    """What went wrong: of something that was tried again and again, the last time."""
    last = getattr(error, "last_attempt", None)
    return (last.exception() or error) if last is not None else error


if __name__ == "__main__":
    main(*sys.argv[1:])
