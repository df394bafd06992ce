"""lmms-eval's tasks: how a document's number is found, the gateway, and (slow) the real thing on stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
from stand_ins.chat_endpoint import chat_server, said

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.judging.judge_model import Judge, JudgeSettings
from mmrlhf.stages import suite_answers, suite_documents, suite_scores
from mmrlhf.suites.document_scores import read_results
from mmrlhf.suites.documents import Document, DocumentStore
from mmrlhf.suites.gateway import gateway
from mmrlhf.suites.harness import PREFIX, Harness, Order, described, known_tasks, needs_judge, number_of
from mmrlhf.suites.harness_program import cause_of, plain, source_of, version_of
from mmrlhf.suites.known_policies import Constant, Oracle

# an environment that `make benchmarks-env` has made
PYTHON = Path(os.environ.get("MMRLHF_BENCHMARKS_PYTHON", ".venv-benchmarks/bin/python"))
needs_harness = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"no environment with lmms-eval at {PYTHON}: make benchmarks-env"
)


@pytest.fixture
def runtime(tmp_path) -> Runtime:
    trainer = partial(L.Trainer, accelerator="cpu")
    return Runtime(trainer=trainer, progress=False, verdicts=tmp_path / "verdicts")


@pytest.mark.parametrize(
    ("metrics", "place", "number"),
    [
        ({"acc": 1}, None, 1.0),
        ({"a": {"id": 3, "score": 0.5}, "b": 1}, None, 0.5),
        ({"a": {"pred": "B", "answer": "b "}}, "a.pred == a.answer", 1.0),
        ({"a": {"pred": "", "answer": "B"}}, "a.pred == a.answer", 0.0),
        ({"a": {"pred": None, "answer": "B"}}, "a.pred == a.answer", None),
        ({"a": {"scores": [7, 5]}}, "a.scores.1", 5.0),
        ({"a": {"true_false": True}}, "a.true_false", 1.0),
        ({"a": {"score": float("nan")}}, "a.score", None),
        ({"a": {"score": "high"}}, "a.score", None),
        ({"a": {"score": 1}}, "b.score", None),
        ({"a": "text"}, None, None),
    ],
)
def test_a_documents_number(metrics, place, number):
    assert number_of(metrics, place) == number


def test_what_is_known_of_tasks():
    assert described("lmms:pope") == ("POPE", "hallucination") and described("new_task") == ("new_task", "other")
    assert needs_judge("wildvision_0617") and not needs_judge("lmms:pope") and not needs_judge("new_task")
    assert all({"title", "dimension", "score"} <= set(own) for own in known_tasks().values())


def post(address: str, content: object) -> tuple[int, dict]:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_gateway_takes_both_spellings_and_remembers_who_has_no_verdict(tmp_path):
    """Two spellings of the address, one question: asked once. Words without a verdict leave a document without one."""
    with chat_server() as server:
        judge = Judge(JudgeSettings(server.url, "ours", retries=0), tmp_path)
        with gateway(judge, {"wild": r"\[\[.*\]\]"}) as found:
            asked = {"model": "theirs", "messages": [{"role": "user", "content": "[[A>B]]"}]}
            urllib.request.urlopen(f"{found.address}/document/wild/3").read()
            one = post(f"{found.address}/v1/chat/completions", asked)
            other = post(f"{found.address}/v1/chat/completions/chat/completions", asked)
            assert one == other and one[1]["choices"][0]["message"]["content"] == "[[A>B]]"
            assert [(seen[2]["model"], seen[0]) for seen in server.seen] == [("ours", "/v1/chat/completions")]
            urllib.request.urlopen(f"{found.address}/document/wild/4").read()
            prose = {"messages": [{"role": "user", "content": "I like both"}]}
            assert post(f"{found.address}/v1/chat/completions", prose)[0] == 400
            server.faults = [("status", 500)]
            urllib.request.urlopen(f"{found.address}/document/wild/5").read()
            assert (
                post(f"{found.address}/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})[0] == 400
            )
            # asked again at once: refused at once
            assert (
                post(f"{found.address}/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})[0] == 400
            )
            assert list(found.missing) == ["wild/4", "wild/5"] and len(server.seen) == 3
            assert post(f"{found.address}/v1/completions", asked)[0] == 404
            assert post(f"{found.address}/v1/chat/completions", {"model": "x"})[0] == 400


def test_without_the_environment_one_screen_says_how_to_make_it(tmp_path, runtime, monkeypatch):
    """It stands beside what else is missing, so that nobody is sent from one screen to the next."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "text").write_text("no program")
    for python in ("nowhere/python", str(tmp_path), str(tmp_path / "text")):
        with pytest.raises(DataError, match="benchmarks are not there") as caught:
            suite_documents.run(tmp_path, tasks=["hallusion_bench_image", "pope"], harness=python, runtime=runtime)
        theirs, ours = caught.value.given
        assert theirs.startswith("hallusion_bench_image: ") and f"no {python}" in theirs
        assert "make benchmarks-env" in theirs and ours.startswith("pope: ")
    asked = {"tasks": ["pope", "lmms:pope"], "limit": 2, "drawn": True, "skip_absent": True}
    found = suite_documents.run(tmp_path / "skipped", **asked, harness="nowhere/python", runtime=runtime)
    assert found["documents"] == {"pope": 2} and "lmms-eval" in found["absent"]["lmms:pope"]
    with pytest.raises(ConfigError, match="lmms-eval is not there") as missing:
        Harness("nowhere/python").write_documents(tmp_path, [])
    assert missing.value.where == "suite.harness"
    with pytest.raises(DataError, match="program failed"):
        Harness("/bin/false").write_documents(tmp_path, [])


class Tried(Exception):
    """As tenacity raises it: what went wrong the last time is inside."""

    def __init__(self, last: Exception | None) -> None:
        super().__init__("RetryError[<Future at 0x7f>]")
        self.last_attempt = SimpleNamespace(exception=lambda: last)


def test_what_was_tried_five_times_is_named_by_its_last_failure():
    assert str(cause_of(Tried(OSError("no route to the hub")))) == "no route to the hub"
    for error in (Tried(None), SystemExit("no clip")):
        assert cause_of(error) is error


@pytest.mark.parametrize(("answers", "data", "offline"), [(True, None, None), (False, None, "1"), (False, "x", None)])
def test_a_hub_that_is_not_there_is_not_waited_for(tmp_path, monkeypatch, answers, data, offline):
    """lmms-eval asks five times for a task's data, for minutes; with the switch it looks into its cache alone."""
    seen = dict[str, str]()
    done = SimpleNamespace(returncode=0, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, env, **__: seen.update(env) or done)
    monkeypatch.setattr("mmrlhf.suites.harness.hub_answers", lambda: answers)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    Harness("/bin/false").write_documents(tmp_path, [Order("videomme", 2, 0, data=data)])
    assert seen.get("HF_HUB_OFFLINE") == seen.get("HF_DATASETS_OFFLINE") == offline


@pytest.fixture
def programs(monkeypatch) -> list[dict]:
    """What lmms-eval's program is handed, task by task; it is not run."""
    seen: list[dict] = []
    done = SimpleNamespace(returncode=0, stdout="", stderr="")
    monkeypatch.setattr(
        subprocess, "run", lambda call, **_: seen.extend(json.loads(Path(call[-1]).read_text())) or done
    )
    monkeypatch.setattr("mmrlhf.suites.harness.hub_answers", lambda: True)
    return seen


@pytest.mark.parametrize("ordered", [None, "main", "a" * 40])
@pytest.mark.parametrize("read", [None, "a" * 40])
def test_answers_are_scored_on_the_commit_that_was_asked(tmp_path, programs, ordered, read):
    """A branch may have moved between the questions and the scores; documents are told apart by their numbers alone."""
    order, judged = Order("videomme", 2, 0, revision=ordered), SimpleNamespace(address="http://127.0.0.1:1")
    Harness("/bin/false").write_documents(tmp_path, [order])
    order.place(tmp_path).mkdir()
    (order.place(tmp_path) / "about.json").write_text(json.dumps({"revision": read}))
    Harness("/bin/false").score(tmp_path, tmp_path / "out", {"videomme": {"3": "B"}}, judged)  # type: ignore[arg-type]
    assert [each["revision"] for each in programs] == [ordered, read or ordered]


def test_the_program_finds_a_folder_wherever_it_runs(tmp_path, programs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = {"videomme": "mine", "mme": "~/mine"}
    orders = [suite_documents._order(task, 2, 0, folders.get(task), {}, drawn=True) for task in (*folders, "pope")]
    Harness("/bin/false").write_documents(Path("out"), orders)
    places = [str(tmp_path / place) for place in ("mine", "home/mine", "out/drawn/pope")]
    assert [each["data"] for each in programs] == places
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for order in orders:
        about = order.place(tmp_path / "out") / "about.json"
        about.parent.mkdir(parents=True, exist_ok=True)
        about.write_text(json.dumps({"revision": None}))
    programs.clear()
    answers = {order.task: {"0": "yes"} for order in orders}
    Harness("/bin/false").score(tmp_path / "out", tmp_path / "scored", answers, SimpleNamespace(address="http://x"))
    assert [each["data"] for each in programs] == places, "also where it is scored"


def test_where_a_tasks_questions_are_from(tmp_path, monkeypatch):
    """The commit is in the names of the cache's files, whichever library named them; data of the user's have none."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.7.3")
    commit, written = "ab" * 20, {"dataset_path": "org/set", "dataset_name": "part"}
    for place in (f"/c/org___set/part/0.0.0/{commit}/set-test.arrow", f"/c/snapshots/{commit}/test.parquet"):
        data = SimpleNamespace(cache_files=[{"filename": place}])
        assert source_of(written, "test", {}, data) == {
            "program": "lmms-eval 0.7.3", "data": "org/set, part", "split": "test", "revision": commit,
        }  # fmt: skip
    unknown = SimpleNamespace(cache_files=[{"filename": f"/c/parquet/default/0.0.0/{'ab' * 32}/x.arrow"}])
    assert source_of(written, "test", {}, unknown)["revision"] is None
    own = source_of(written, "test", {"data": "/mine"}, SimpleNamespace(cache_files=[{"filename": place}]))
    assert (own["data"], own["revision"]) == ("/mine", None)


@pytest.mark.parametrize(
    ("metadata", "version"),
    [([{"version": 0.0}], "0.0"), ({"version": 1.0, "api_type": "x"}, "1.0"), (None, None), ("text", None), ([], None)],
)
def test_the_version_of_a_task(metadata, version):
    assert version_of(SimpleNamespace(config=SimpleNamespace(metadata=metadata))) == version


# ---- the real harness on stand-ins

TASKS = [
    "ai2d", "chartqa", "docvqa_val", "infovqa_val", "websrc_val", "ocrbench", "textvqa_val", "pope", "mme", "mmstar",
    "seedbench_2_plus", "vqav2_val", "realworldqa", "mmmu_pro_standard", "mmmu_pro_vision", "mmbench_en_dev",
]  # fmt: skip


class SameAnswers:
    """Says to the harness's documents what an oracle says to ours of the same name."""

    def __init__(self, folder: Path, oracle: Oracle) -> None:
        self.ours = {(d.task, d.name): d for d in DocumentStore(folder).read()}
        self.oracle = oracle

    def answer(self, document: Document) -> str:
        return self.oracle.answer(self.ours[document.task.removeprefix(PREFIX), document.name])


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """The same stand-ins as we read them and as lmms-eval does."""
    out = tmp_path_factory.mktemp("both")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    tasks = [*TASKS, *(f"lmms:{task}" for task in TASKS)]
    suite_documents.run(out, tasks=tasks, limit=12, drawn=True, harness=str(PYTHON.absolute()), runtime=runtime)
    return out


@pytest.mark.slow
@needs_harness
def test_questions_are_those_of_the_harness(both):
    found = {(d.task, d.name): d for d in DocumentStore(both).read()}
    ours = [d for (task, _), d in found.items() if not task.startswith("lmms:")]
    compared = set()
    for document in ours:
        theirs = found.get((f"lmms:{document.task}", document.name))
        if theirs is not None:
            compared.add(document.task)
            assert theirs.prompt == document.prompt, document.task
            assert len(theirs.media) == len(document.media)
    assert compared == set(TASKS)


@pytest.mark.slow
@needs_harness
@pytest.mark.parametrize("style", ["plain", "sentence"])
def test_strict_scores_are_those_of_the_harness(both, tmp_path, runtime, style):
    """The same oracle: what we call strict is what lmms-eval's own code says, document by document."""
    known = SameAnswers(both, Oracle(p=0.5, style=style))
    suite_answers.run(tmp_path / "answers", documents=both, known=known, runtime=runtime)
    asked = {"documents": both, "answers": tmp_path / "answers", "harness": str(PYTHON.absolute())}
    suite_scores.run(tmp_path / "scores", **asked, runtime=runtime)
    found = {(r.task, r.document): r for r in read_results(tmp_path / "scores")}
    compared, without = set(), set()
    for (task, name), theirs in found.items():
        if task.startswith(PREFIX):
            ours = found[task.removeprefix(PREFIX), name]
            (without if theirs.score is None else compared).add(ours.task)
            assert theirs.score is None or theirs.score == pytest.approx(ours.strict), (ours, theirs)
    # WebSRC and MMBench give numbers over all documents alone
    assert without == {"websrc_val", "mmbench_en_dev"} and compared == set(TASKS) - without


@pytest.mark.slow
@needs_harness
def test_a_failed_judge_is_no_score_where_the_harness_gives_one(tmp_path, runtime):
    """Its LLaVA-W counts failed verdicts as [-1, -1], 100.0 on average; here such documents end the scoring."""
    documents, harness = tmp_path / "documents", str(PYTHON.absolute())
    suite_documents.run(
        documents, tasks=["lmms:llava_in_the_wild"], limit=3, drawn=True, harness=harness, runtime=runtime
    )
    suite_answers.run(tmp_path / "answers", documents=documents, known=Constant("A picture."), runtime=runtime)
    with chat_server() as server:
        asked = {"documents": documents, "answers": tmp_path / "answers", "harness": harness, "runtime": runtime}
        judge = JudgeSettings(server.url, "judge", retries=0)
        server.faults = [("body", said("I like it"))]
        with pytest.raises(DataError, match="verdicts are missing"):
            suite_scores.run(tmp_path / "scores", judge=judge, **asked)
        server.faults = [("body", said("8 4\nfine"))] * 3
        suite_scores.run(tmp_path / "scores", judge=judge, **asked)
    assert [result.score for result in read_results(tmp_path / "scores")] == [4.0] * 3


def test_the_order_of_a_set_is_no_part_of_a_document() -> None:
    """It is another one in every process."""
    words = ["dog", "cat", "cow", "ant", "bee"]
    assert plain({"a": set(words), "b": frozenset({(1, 2), (1, 1)})}) == {"a": sorted(words), "b": [[1, 1], [1, 2]]}
