"""Stage `suite_answers`: a policy answers the documents of a suite; a stopped run goes on with what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.fingerprint import path_token
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.files import read_lines, written
from mmrlhf.inference.made_by import describe_source
from mmrlhf.inference.passes import BATCHES_PER_WINDOW
from mmrlhf.inference.settings import PassSettings
from mmrlhf.inference.sharing import share_pass
from mmrlhf.parts import Parts
from mmrlhf.ranges import Count
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.suites.answering import MAX_PIXELS, Answerer, Asked, Said, answer_window, said_from, windows_of
from mmrlhf.suites.documents import Document, DocumentStore
from mmrlhf.summaries.suites import SuiteAnswers
from mmrlhf.terminal.progress import track

PARTS, ANSWERS = "parts", "answers.jsonl"

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("answers.jsonl", "metrics.json")


def run(
    out: Path,
    *,
    documents: Path,
    policy: Path | str | None = None,
    known: Answerer | None = None,
    passes: PassSettings | None = None,
    max_pixels: Count = MAX_PIXELS,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/answers.jsonl`: for every document the answer at temperature 0, or why there is none.

    Several processes share the windows of documents.

    Args:
        documents: the questions (stage `suite_documents`).
        policy: the model that answers.
        known: answers instead of a model (`mmrlhf.suites.known_policies`), to check the table.
        passes: how the model is asked.
        max_pixels: largest picture that is read; a larger one is counted among those that cannot be.
    """
    out.mkdir(parents=True, exist_ok=True)
    store, passes = DocumentStore(documents), passes or PassSettings()
    found = store.read()
    windows = windows_of(found, passes.groups_per_batch * BATCHES_PER_WINDOW)
    model = passes.model
    made_by = {
        "documents": path_token(documents),
        "policy": describe_source(policy) if known is None and policy is not None else repr(known),
        **{name: getattr(model, name) for name in ("precision", "layout", "max_tokens")},
        "media": repr(passes.media), "max_pixels": max_pixels, "window": passes.groups_per_batch * BATCHES_PER_WINDOW,
    }  # fmt: skip
    parts = Parts(out / PARTS, made_by, what="answers to benchmarks")
    with share_pass(runtime) as ranks:
        own = [int(number) for number in ranks.share(np.arange(len(windows)))]
        missing = [number for number in own if parts.read(_name(number)) is None]
        if missing:
            asked = known or Asked(policy, passes, _longest(found), ranks.device, runtime.num_workers, max_pixels)
            for number in track(missing, "answering (windows)", len(missing), enabled=runtime.progress):
                said, seconds = answer_window(asked, store, windows[number])
                parts.write(_name(number), {"said": {k: v.to_json() for k, v in said.items()}, "seconds": seconds})
        ranks.gather(None)
    return _write(out, found, windows, parts, runtime) if ranks.leads else {}


def _name(number: int) -> str:
    return f"{number:06d}"


def _longest(documents: Sequence[Document]) -> int:
    return max((document.max_new_tokens for document in documents), default=1)


def _write(
    out: Path,
    documents: Sequence[Document],
    windows: Sequence[Sequence[Sequence[Document]]],
    parts: Parts,
    runtime: Runtime,
) -> dict[str, Any]:
    said: dict[str, Said] = {}
    seconds: dict[str, float] = {}
    for number, window in enumerate(windows):
        part = parts.read(_name(number))
        assert part is not None, f"window {number} was answered by its rank"
        said |= {key: said_from(content) for key, content in part["said"].items()}
        task = window[0][0].task
        seconds[task] = seconds.get(task, 0.0) + part["seconds"]
    quarantine = Quarantine(len(documents), runtime.max_damaged)
    quarantine.update({key: each.reason for key, each in said.items() if each.reason})
    quarantine.check("the documents of benchmarks")
    with written(out / ANSWERS) as part, part.open("w", encoding="utf-8") as file:
        for document in documents:
            row = {"document": document.key, "digest": document.digest, **said[document.key].to_json()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return SuiteAnswers(
        documents=len(documents),
        pictures=len({document.picture for document in documents if document.media}),
        contexts=sum(map(len, windows)),
        answered=sum(not each.reason for each in said.values()),
        cut=sum(each.cut for each in said.values()),
        seconds=seconds,
        quarantined=quarantine.summary(),
    ).write(out)


def read_answers(folder: Path, documents: Sequence[Document]) -> dict[str, Said]:
    """Answers of a finished stage to these documents, by document.

    Raises:
        DataError: there are none, a line is no answer, or they are of other documents.
    """
    path = folder / ANSWERS
    if not path.is_file():
        raise DataError(
            "there are no answers to benchmarks here",
            where=folder, expected=f"a folder with {ANSWERS}", fix="stage=suite_answers makes one of a policy",
        )  # fmt: skip
    said: dict[tuple[str, str], Said] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if line:
            try:
                row = json.loads(line)
                said[row["document"], row["digest"]] = Said(row["text"], row["cut"], row["reason"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError("a line is no answer", where=f"{path}:{number}", given=f"{error!r:.80}") from error
    missing = [document.key for document in documents if (document.key, document.digest) not in said]
    if missing:
        raise DataError(
            "these are answers to other documents",
            where=path, given=f"none to {len(missing)} of {len(documents)}, such as {missing[0]}",
            expected="an answer to every document", fix="run stage=suite_answers on these documents",
        )  # fmt: skip
    return {document.key: said[document.key, document.digest] for document in documents}
