"""Stand-ins in the published columns, and oracles that know every answer: every number is known beforehand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mmrlhf.composition.config import CONF
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.metrics.paired import planned_detectable
from mmrlhf.stages import report_benchmarks, suite_answers, suite_documents, suite_scores
from mmrlhf.stages.suite_documents import BENCHMARKS
from mmrlhf.suites.answer_forms import FORMS
from mmrlhf.suites.answering import Said
from mmrlhf.suites.columns import COLUMNS
from mmrlhf.suites.comparison import compare
from mmrlhf.suites.documents import Document, DocumentStore, StoredMedia
from mmrlhf.suites.harness import Harness, Order, known_tasks
from mmrlhf.suites.judged_forms import JUDGED
from mmrlhf.suites.known_policies import Constant, Oracle
from mmrlhf.suites.marking import score
from mmrlhf.suites.published_rows import pinned_revisions
from mmrlhf.suites.standins import STANDINS, write_standin
from mmrlhf.summaries.kinds import KINDS

OWN_SCORE = [task for task in STANDINS if task in COLUMNS or task == "object_hal_bench"]
SIZE = 30


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Documents of every stand-in that needs no judge."""
    from functools import partial

    import lightning as L

    from mmrlhf.chain.runtime import Runtime

    out = tmp_path_factory.mktemp("documents")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    suite_documents.run(out, tasks=OWN_SCORE, limit=SIZE, drawn=True, runtime=runtime)
    return out


def run_suite(tmp_path: Path, documents: Path, known, runtime, name: str) -> Path:
    suite_answers.run(tmp_path / f"{name} answers", documents=documents, known=known, runtime=runtime)
    out = tmp_path / f"{name} scores"
    suite_scores.run(out, documents=documents, answers=tmp_path / f"{name} answers", runtime=runtime)
    return out


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def documents_of(folder: Path) -> list[Document]:
    return DocumentStore(folder).read()


def test_there_are_enough_of_them(drawn):
    found = documents_of(drawn)
    assert len(OWN_SCORE) >= 15 and len(found) == SIZE * len(OWN_SCORE) and set(STANDINS) - set(OWN_SCORE)
    forms = {document.truth["form"] for document in found}
    assert forms == set(FORMS) - {"exact"} and not forms & set(JUDGED)
    pictures = {task: len({d.picture for d in found if d.task == task}) for task in OWN_SCORE}
    assert pictures["pope"] == SIZE // 6 and pictures["mme"] == SIZE // 2 and pictures["mmstar"] > SIZE * 0.8


@pytest.mark.parametrize("style", ["plain", "sentence", "verbose", "markdown"])
def test_an_oracle_is_right_in_any_style(drawn, style):
    """Right answers score 1 and wrong ones 0, whatever their style."""
    for document in documents_of(drawn):
        mark = FORMS[document.truth["form"]].mark
        assert mark(document.truth, Oracle(p=1, style=style).answer(document)).score == 1, document
        assert mark(document.truth, Oracle(p=0, style=style).answer(document)).score == 0, document


def test_every_number_of_the_table_is_what_the_oracles_know(tmp_path, drawn, runtime, capsys):
    weak, strong = Oracle(p=0.5), Oracle(p=0.8, style="sentence")
    before, after = (run_suite(tmp_path, drawn, known, runtime, name) for name, known in (("a", weak), ("b", strong)))
    out = tmp_path / "report"
    found = report_benchmarks.run(out, before=before, after=after, documents=drawn, runtime=runtime)
    assert KINDS["report_benchmarks"].from_json(metrics(out), where=out).to_json() == found
    for name, folder in (
        ("suite_documents", drawn),
        ("suite_answers", tmp_path / "a answers"),
        ("suite_scores", before),
    ):
        assert KINDS[name].from_json(metrics(folder), where=folder).to_json() == metrics(folder)
    for task, row in found["benchmarks"].items():
        own = [document for document in documents_of(drawn) if document.task == task]
        knew, knows = (np.array([oracle.knows(d) for d in own], float) for oracle in (weak, strong))
        assert row["before"]["mean"] == pytest.approx(knew.mean()) and row["after"]["mean"] == pytest.approx(
            knows.mean()
        )
        assert (row["fixed"], row["broken"]) == (int((knows > knew).sum()), 0), "one seed: nothing is broken"
        assert row["difference"]["mean"] == pytest.approx((knows - knew).mean())
        assert row["documents"] == SIZE and row["left_out"] == {}
    assert found["benchmarks"]["pope"]["strict_after"] == 0.0, "style shows in the strict score alone"
    assert found["benchmarks"]["pope"]["parsed_after"] == 1.0
    page = (out / "benchmarks.html").read_text()
    pope = found["benchmarks"]["pope"]
    assert f"<td>{pope['strict_before']:.3f}\u00a0-&gt;\u00a00.000</td>" in page, "a change is on one line"
    assert "Fixed and broken" in page and "data:image/png" in page and "POPE" in capsys.readouterr().out
    assert set(found["dimensions"]) == {row["dimension"] for row in found["benchmarks"].values()}


def test_a_constant_scores_what_the_truths_say(tmp_path, drawn, runtime):
    """Half of POPE's answers are yes; nothing else is."""
    scores = metrics(run_suite(tmp_path, drawn, Constant("yes"), runtime, "yes"))["benchmarks"]
    assert scores["pope"]["score"]["mean"] == scores["mme"]["score"]["mean"] == 0.5
    # every picture has one question of each answer: right on one, never on both
    assert scores["mme"]["aggregates"] == {"accuracy plus accuracy+": pytest.approx(50.0)}
    assert scores["mmstar"]["score"]["mean"] == scores["chartqa"]["score"]["mean"] == 0.0
    assert scores["mmstar"]["parsed"] == 0.0 and scores["object_hal_bench"]["parsed"] == 0.0
    assert scores["object_hal_bench"]["aggregates"] == {"CHAIR_i": 0.0}


def test_a_part_of_a_benchmark_is_drawn_from_all_of_it(tmp_path, drawn, runtime):
    folders = {"mmstar": str(drawn / "drawn" / "mmstar")}
    asked = {"tasks": ["mmstar"], "limit": 10, "folders": folders, "runtime": runtime}
    first, again = tmp_path / "1", tmp_path / "2"
    suite_documents.run(first, **asked)
    suite_documents.run(again, **asked, seed=1)
    names = [[int(d.name) for d in documents_of(folder)] for folder in (first, again)]
    assert len(names[0]) == 10 and names[0] == sorted(names[0]) and names[0] != names[1] and max(names[0]) > 12
    whole = {d.name: d.digest for d in documents_of(drawn) if d.task == "mmstar"}
    assert all(whole[d.name] == d.digest for d in documents_of(first))


def document(number: int) -> Document:
    """One of many questions, three to a picture."""
    media = (StoredMedia("image", ("0.png",), (f"{number // 3}",)),)
    truth = {"form": "yes_no", "answer": "yes"}
    return Document("pope", str(number), "POPE", "hallucination", f"question {number}", media, truth, 4)


def test_known_effects_are_found_with_the_stated_power():
    """Two oracles that know nothing of each other, .6 and .6 + what 300 documents detect: found about 4 times in 5."""
    documents = [document(number) for number in range(300)]
    changing = 2 * 0.6 * 0.4
    effect = planned_detectable(300, changing=changing)
    found, stated = [], []
    for seed in range(40):
        known = [Oracle(p=p, seed=2 * seed + n) for n, p in enumerate((0.6, 0.6 + effect))]
        results = [[score(d, Said(oracle.answer(d))) for d in documents] for oracle in known]
        row = compare(results[0], results[1]).benchmarks["pope"]
        found.append(row.p < 0.05)
        stated.append(row.detectable)
    assert 0.55 < np.mean(found) < 0.95
    assert np.mean(stated) == pytest.approx(effect, rel=0.1)


# ---- what bad input gets


def test_benchmarks_that_are_not_there_are_one_screen(tmp_path, drawn, runtime, monkeypatch):
    asked = {"tasks": ["pope", "mmstar", "mme"], "limit": 3, "folders": {"pope": str(drawn / "drawn" / "pope")}}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(DataError, match="benchmarks are not there") as caught:
        suite_documents.run(tmp_path / "out", **asked, runtime=runtime)
    text = str(caught.value)
    assert (
        f"mmstar: Lin-Chen/MMStar at {pinned_revisions()['mmstar']}, val" in text
        and "mme: " in text
        and "pope" not in text
    )
    assert "suite.folders={mmstar: DIR, mme: DIR}" in text
    found = suite_documents.run(tmp_path / "skipped", **asked, skip_absent=True, runtime=runtime)
    assert found["documents"] == {"pope": 3} and set(found["absent"]) == {"mmstar", "mme"}


def cached(hub: Path, task: str, commits: dict[str, int]) -> Path:
    """A cache of the hub library that holds commits of one data set, each drawn from a seed; `main` is the last."""
    place = hub / f"datasets--{BENCHMARKS[task].repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(list(commits)[-1])
    for commit, seed in commits.items():
        write_standin(task, place / "snapshots" / commit, documents=6, seed=seed)
    return place / "snapshots"


def test_data_of_the_hub_are_pinned_or_say_how(tmp_path, runtime, monkeypatch, caplog):
    """What is pinned here is read, whatever `main` is; a user's pin wins; of what nobody pins the commit is written."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    here, old, new = pinned_revisions()["pope"], "a" * 40, "b" * 40
    snapshots = cached(tmp_path / "hub", "pope", {here: 6, old: 7, new: 8})
    cached(tmp_path / "hub", "websrc_val", {old: 7, new: 8})
    asked = {"tasks": ["pope", "websrc_val"], "runtime": runtime}
    assert "websrc_val" not in pinned_revisions()
    with caplog.at_level("INFO"):
        found = suite_documents.run(tmp_path / "1", **asked)
    assert found["revisions"] == {"pope": here, "websrc_val": new}
    assert f"suite.revisions={{websrc_val: {new}}}" in caplog.text
    assert {task: source["chosen"] for task, source in found["sources"].items()} == {
        "pope": "pinned", "websrc_val": "newest",
    }  # fmt: skip
    caplog.clear()
    with caplog.at_level("INFO"):
        given = suite_documents.run(tmp_path / "2", **asked, revisions={"pope": "main", "websrc_val": old})
    assert given["revisions"] == {"pope": new, "websrc_val": old} and "suite.revisions" not in caplog.text
    assert {source["chosen"] for source in given["sources"].values()} == {"given"}
    digests = [{d.digest for d in documents_of(tmp_path / name)} for name in ("1", "2")]
    assert len(digests[0]) == len(digests[1]) == 12 and not digests[0] & digests[1]
    with pytest.raises(DataError, match=rf"pope: lmms-lab-encoder/POPE at {'c' * 40}, test") as caught:
        suite_documents.run(tmp_path / "3", **asked, revisions={"pope": "c" * 40})
    assert "reads the newest" not in str(caught.value), "that commit is the user's own"
    folder = suite_documents.run(
        tmp_path / "own", tasks=["pope"], folders={"pope": str(snapshots / old)}, runtime=runtime
    )
    assert folder["revisions"] == {}, "a folder of the user's is what it is"
    assert folder["sources"]["pope"] == {"data": str(snapshots / old), "split": "test"}


def test_a_folder_wins_over_a_stand_in_and_neither_has_a_commit(tmp_path, drawn, runtime, monkeypatch, caplog):
    """One benchmark of the user's among drawn ones: what is read, what is said of it, and what the harness is told."""
    told: list[Order] = []
    monkeypatch.setattr(Harness, "write_documents", lambda self, out, orders: told.extend(orders))
    monkeypatch.setattr(suite_documents, "read_questions", lambda task, folder: iter(()))
    about = {"data": "-", "split": "test", "revision": None, "program": "lmms-eval 0.7.3"}
    monkeypatch.setattr(suite_documents, "read_about", lambda folder: about)
    monkeypatch.chdir(drawn)
    folders = {"pope": "drawn/pope", "lmms:videomme": "drawn/videomme"}
    tasks = [*folders, "mmstar", "lmms:mme"]
    asked = {"tasks": tasks, "limit": 4, "drawn": True, "seed": 5, "runtime": runtime}
    with caplog.at_level("WARNING"):
        found = suite_documents.run(tmp_path, **asked, folders=folders, revisions={"pope": "main", "mmstar": "a" * 40})
    assert {task: source["data"] for task, source in found["sources"].items()} == {
        **folders, "mmstar": "drawn here", "lmms:mme": "drawn here",
    }  # fmt: skip
    given = {d.digest for d in documents_of(drawn) if d.task == "pope"}
    assert {d.digest for d in documents_of(tmp_path) if d.task == "pope"} < given, "its own questions, not seed 5's"
    assert [(order.data, order.revision, order.drawn) for order in told] == [
        (str(drawn / "drawn" / "videomme"), None, False), (None, None, True),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["mme", "mmstar"]
    assert [record.getMessage() for record in caplog.records] == [
        "suite.revisions: main is not used for pope, of which drawn/pope is read",
        f"suite.revisions: {'a' * 40} is not used for mmstar, of which a stand-in is drawn",
    ]


def test_a_folder_that_cannot_be_read_is_of_no_commit(tmp_path, runtime):
    """The pinned commit is the hub's; to read the newest instead would be no help."""
    with pytest.raises(DataError, match="not there") as caught:
        suite_documents.run(tmp_path, tasks=["mmstar"], folders={"mmstar": str(tmp_path / "no")}, runtime=runtime)
    text = str(caught.value)
    assert str(tmp_path / "no") in text and pinned_revisions()["mmstar"] not in text and "newest" not in text


def test_a_pinned_commit_that_is_not_there_says_how_to_read_another(tmp_path, runtime, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", "pope", {"b" * 40: 8})
    with pytest.raises(DataError, match=f"POPE at {pinned_revisions()['pope']}") as caught:
        suite_documents.run(tmp_path / "out", tasks=["pope"], runtime=runtime)
    assert "suite.revisions={pope: main} reads the newest" in str(caught.value)


def test_the_page_says_where_the_questions_are_from(tmp_path, drawn, runtime, monkeypatch):
    """Drawn, of a commit, or not there: on the page, in the Markdown and in metrics.json."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", "websrc_val", {"b" * 40: 8})
    documents = tmp_path / "documents"
    asked = {"tasks": ["websrc_val", "mme"], "skip_absent": True, "runtime": runtime}
    suite_documents.run(documents, **asked)
    before, after = (run_suite(tmp_path, documents, Oracle(p=p), runtime, str(p)) for p in (0.2, 0.8))
    found = report_benchmarks.run(tmp_path / "r", before=before, after=after, documents=documents, runtime=runtime)
    assert found["sources"]["websrc_val"]["revision"] == "b" * 40 and set(found["absent"]) == {"mme"}
    for name in ("benchmarks.html", "benchmarks.md"):
        text = (tmp_path / "r" / name).read_text()
        assert f"{'b' * 40} (newest)" in text and "rootsautomation/websrc" in text and "not there: " in text
    (documents / "metrics.json").unlink()
    alone = report_benchmarks.run(tmp_path / "alone", before=before, after=after, documents=documents, runtime=runtime)
    assert "sources" not in alone and "<h2>Data</h2>" not in (tmp_path / "alone" / "benchmarks.html").read_text()


def test_what_is_pinned_is_a_benchmark_and_a_commit():
    known = {*BENCHMARKS, *known_tasks()}
    assert set(pinned_revisions()) <= known and len(pinned_revisions()) > 15
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in pinned_revisions().values())


@pytest.mark.parametrize("suite", sorted((CONF / "suite").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_suite_names_benchmarks_that_there_are(suite):
    tasks = yaml.safe_load(suite.read_text(encoding="utf-8")).get("tasks", ["pope"])
    suite_documents.check_settings({"tasks": tasks})


def test_a_name_like_one_of_ours_may_be_the_harness_s():
    with pytest.raises(ConfigError, match="no such benchmark") as caught:
        suite_documents.check_settings({"tasks": ["docvqa_test"]})
    assert "did you mean docvqa_val" in str(caught.value) and "lmms:docvqa_test" in str(caught.value)
    suite_documents.check_settings({"tasks": ["lmms:docvqa_test"]})


@pytest.mark.parametrize("tasks", [["pope", "mme", "pope"], ["wildvision_0617", "lmms:wildvision_0617"]])
def test_a_benchmark_by_two_names_is_refused(tasks):
    """What lmms-eval leaves of a task lies under its own name: the answers of the second would be the first's, too."""
    with pytest.raises(ConfigError, match="there twice"):
        suite_documents.check_settings({"tasks": tasks})
    suite_documents.check_settings({"tasks": ["pope", "lmms:pope"]})


def test_answers_that_are_none_or_of_other_documents_are_refused(tmp_path, runtime):
    for name, seed in (("one", 0), ("other", 1)):
        suite_documents.run(tmp_path / name, tasks=["pope"], limit=2, seed=seed, drawn=True, runtime=runtime)
    answers = tmp_path / "answers"
    suite_answers.run(answers, documents=tmp_path / "one", known=Constant("yes"), runtime=runtime)
    with pytest.raises(DataError, match="answers to other documents") as caught:
        suite_scores.run(tmp_path / "s", documents=tmp_path / "other", answers=answers, runtime=runtime)
    assert "none to 2 of 2, such as pope~0" in str(caught.value), "the names are the same, the pictures are not"
    with pytest.raises(DataError, match="no answers to benchmarks"):
        suite_scores.run(tmp_path / "s", documents=tmp_path / "one", answers=tmp_path / "one", runtime=runtime)
    with (answers / "answers.jsonl").open("a") as file:
        file.write('{"document": "pope~0"\n')
    with pytest.raises(DataError, match=r"answers.jsonl:3"):
        suite_scores.run(tmp_path / "s", documents=tmp_path / "one", answers=answers, runtime=runtime)


def test_unknown_benchmarks_and_none_are_refused(tmp_path, runtime):
    with pytest.raises(ConfigError, match="no such benchmark") as caught:
        suite_documents.run(tmp_path, tasks=["poep"], runtime=runtime)
    assert caught.value.fix == "did you mean pope?"
    with pytest.raises(ConfigError, match="no benchmark"):
        suite_documents.run(tmp_path, tasks=[], runtime=runtime)
    for argument in ("folders", "revisions"):
        with pytest.raises(ConfigError, match="no such benchmark") as caught:
            suite_documents.run(tmp_path, tasks=["pope"], **{argument: {"poep": "x"}}, runtime=runtime)
        assert caught.value.where == f"suite.{argument}" and "did you mean pope?" in caught.value.fix
    with pytest.raises(ConfigError, match="words of its own"):
        suite_documents.run(tmp_path, tasks=["pope"], prompts={"pope": "x"}, runtime=runtime)


def damaged_table(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-0.parquet")
    return folder


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "q", "answer": "yes"}], "no image"),
        ([{"question": "q", "answer": None, "image": {"bytes": b"x", "path": None}}], "no answer"),
        ([{"question": "q", "answer": "yes", "image": {"bytes": None, "path": "a.png"}}], "no picture"),
        ([{"question": 3, "answer": "yes", "image": {"bytes": b"x", "path": None}}], "AttributeError"),
    ],
)
def test_rows_of_another_layout_are_named(tmp_path, runtime, rows, said):
    folder = damaged_table(tmp_path / "pope", rows)
    with pytest.raises(DataError, match="benchmarks are not there") as caught:
        suite_documents.run(tmp_path / "o", tasks=["pope"], folders={"pope": str(folder)}, runtime=runtime)
    assert said in str(caught.value)


def test_files_that_are_damaged_are_named(tmp_path, runtime):
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "test-0.parquet").write_bytes(b"PAR1 nothing")
    for folder, said in ((tmp_path / "pope", "cannot be read"), (tmp_path / "nowhere", "no Parquet files")):
        with pytest.raises(DataError) as caught:
            suite_documents.run(tmp_path / "o", tasks=["pope"], folders={"pope": str(folder)}, runtime=runtime)
        assert said in str(caught.value)


def test_a_changed_picture_is_found(tmp_path, drawn):
    store = DocumentStore(drawn)
    document = next(d for d in store.read() if d.media)
    copy = DocumentStore(tmp_path)
    copy.keep(store.media(document))
    copy.write([document])
    assert copy.media(copy.read()[0]) == store.media(document)
    next((tmp_path / "media").rglob("*/*")).write_bytes(b"another")
    with pytest.raises(DataError, match="was changed"):
        copy.media(document)
    with pytest.raises(DataError, match="one name"):
        copy.write([document, document])


def test_a_folder_of_nobodys_home_is_named_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="home folder that does not exist") as caught:
        suite_documents.check_settings({"tasks": ["pope", "lmms:mme"], "folders": {"lmms:mme": "~nobody-there/x"}})
    assert caught.value.where == "suite.folders.lmms:mme"
