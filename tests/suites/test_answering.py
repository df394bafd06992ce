"""A policy's answers: the same as asked one by one, every picture once, and none lost by a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmrlhf.errors import DataError
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import PassSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.stages import suite_answers, suite_documents
from mmrlhf.suites import answering
from mmrlhf.suites.answering import contexts_of, windows_of
from mmrlhf.suites.documents import DocumentStore

TASKS = {"pope": 12, "mmstar": 4, "videomme": 6, "mme": 4}
PASSES = PassSettings(groups_per_batch=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    from functools import partial

    import lightning as L

    from mmrlhf.chain.runtime import Runtime

    out = tmp_path_factory.mktemp("documents")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    suite_documents.run(out, tasks=list(TASKS), limits=TASKS, drawn=True, longest_answer=5, runtime=runtime)
    return out


def rows_of(folder: Path) -> dict[str, dict]:
    rows = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return {row["document"]: row for row in rows}


def test_answers_are_those_of_each_question_alone(tmp_path, drawn, small_policy, runtime):
    found = suite_answers.run(tmp_path, documents=drawn, policy=small_policy, passes=PASSES, runtime=runtime)
    rows, store = rows_of(tmp_path), DocumentStore(drawn)
    policy = Policy.from_pretrained(small_policy, PASSES, room=6)
    for document in store.read():
        if document.task != "videomme":
            (media,) = store.media(document)
            alone = policy.answer(media.data[0], document.prompt, max_new_tokens=5)
            assert rows[document.key]["text"] == alone.strip(), document
    # six questions a picture, one, three a clip, two: 2 + 4 + 2 + 2 prefixes for 26 documents
    assert (found["documents"], found["contexts"], found["answered"]) == (26, 10, 26)
    assert set(found["seconds"]) == set(TASKS) and len({row["text"] for row in rows.values()}) > 3


def test_a_picture_is_encoded_once_and_a_clip_decoded_once(tmp_path, drawn, small_policy, runtime, monkeypatch):
    read: list[str] = []
    media = DocumentStore.media
    monkeypatch.setattr(
        DocumentStore, "media", lambda self, document: read.append(document.picture) or media(self, document)
    )
    suite_answers.run(tmp_path, documents=drawn, policy=small_policy, passes=PASSES, runtime=runtime)
    assert len(read) == len(set(read)) == 10


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path, drawn, small_policy, runtime, monkeypatch):
    asked = {"documents": drawn, "policy": small_policy, "passes": PASSES, "runtime": runtime}
    suite_answers.run(tmp_path / "whole", **asked)
    answer, windows = answering.answer_window, []

    def stops(*given):
        if len(windows) == 2:
            raise KeyboardInterrupt
        windows.append(1)
        return answer(*given)

    monkeypatch.setattr(suite_answers, "answer_window", stops)
    with pytest.raises(KeyboardInterrupt):
        suite_answers.run(tmp_path / "part", **asked)
    monkeypatch.setattr(suite_answers, "answer_window", lambda *given: windows.append(1) or answer(*given))
    suite_answers.run(tmp_path / "part", **asked)
    assert len(windows) == 4, "two before the stop, two after it"
    assert (tmp_path / "part/answers.jsonl").read_bytes() == (tmp_path / "whole/answers.jsonl").read_bytes()


def test_a_question_that_does_not_fit_takes_no_other_with_it(tmp_path, drawn, small_policy, runtime):
    documents = [d for d in DocumentStore(drawn).read() if d.task == "pope"][:6]
    store = DocumentStore(tmp_path / "documents")
    store.keep(DocumentStore(drawn).media(documents[0]))
    long = documents[0].__class__(**{**vars(documents[0]), "prompt": "is there a red circle " * 400})
    store.write([long, *documents[1:]])
    passes = PassSettings(groups_per_batch=2, model=ModelSettings(max_tokens=600))
    runtime.max_damaged = 0.5
    asked = {"documents": store.folder, "policy": small_policy, "passes": passes, "runtime": runtime}
    found = suite_answers.run(tmp_path / "o", **asked)
    rows = rows_of(tmp_path / "o")
    assert rows[long.key]["reason"] == "a prompt with its media is longer than the model's context"
    assert found["answered"] == 5 and not rows[documents[1].key]["reason"] and found["quarantined"]["queries"] == 1
    runtime.max_damaged = 0.0
    store.write([long, *[d.__class__(**{**vars(long), "name": f"long {n}"}) for n, d in enumerate(documents[1:])]])
    with pytest.raises(DataError, match="too many queries cannot be used"):
        suite_answers.run(tmp_path / "none", **asked)


def test_documents_share_a_prefix_by_picture_and_length(drawn):
    documents = DocumentStore(drawn).read()
    assert [len(context) for context in contexts_of(documents)] == [6, 6, 1, 1, 1, 1, 3, 3, 2, 2]
    windows = windows_of(documents, 5)
    assert [d.key for window in windows for context in window for d in context] == [d.key for d in documents]
    assert all(len({d.task for context in window for d in context}) == 1 for window in windows)
    many = [documents[0]] * (answering.MOST_QUESTIONS + 1)
    assert [len(context) for context in contexts_of(many)] == [answering.MOST_QUESTIONS, 1]


def test_large_pictures_are_read_up_to_a_bound(tmp_path, drawn, small_policy, runtime, monkeypatch):
    """Pillow's own limit does not count, ours does: 2,304 pixels pass 3,000 and not 2,000."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    runtime.max_damaged = 1.0
    asked = {"documents": drawn, "policy": small_policy, "passes": PASSES, "runtime": runtime}
    found = suite_answers.run(tmp_path / "large", **asked, max_pixels=3000)
    assert found["answered"] == 26 and Image.MAX_IMAGE_PIXELS == 1000
    found = suite_answers.run(tmp_path / "small", **asked, max_pixels=2000)
    assert found["answered"] == 6, "clips alone"
    assert [row["reason"] for row in found["quarantined"]["reasons"]] == ["image has too many pixels"]
