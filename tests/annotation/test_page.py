"""The annotation page's server without a browser: what it hands out, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins.annotators import unranked
from stand_ins.sample_groups import make_group, picture
from starlette.testclient import TestClient

from mmrlhf.annotation import form_store
from mmrlhf.annotation.assignments import make_plan
from mmrlhf.annotation.filled_forms import DIMENSIONS
from mmrlhf.annotation.form_store import FormStore, submitted_forms
from mmrlhf.annotation.page_desk import Desk
from mmrlhf.annotation.page_server import PageServer
from mmrlhf.annotation.queries_to_ask import QueriesToAsk
from mmrlhf.shapes.draw import encode_video
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media, PreferenceGroup, Response

SCRIPT = "<script>alert(1)</script>"
CLIP = Media("video", ("mp4",), (encode_video(np.zeros((4, 32, 32, 3), np.uint8)),))
OWN = Media("image", ("0a.0.jpg",), (picture(20, 20),))
GROUPS = [
    *(unranked(f"plain{number}") for number in range(3)),
    unranked("clip", media=(CLIP,)),
    PreferenceGroup("own", SCRIPT, (Response(SCRIPT, model="secret-model"), Response("b", rank=7, media=(OWN,)))),
    unranked("broken", media=(Media("image", ("0.jpg",), (b"\xff\xd8\xffno picture",)),)),
]
GOLD = [make_group("golden-1")]


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> QueriesToAsk:
    folder = tmp_path_factory.mktemp("page")
    write_shards(GROUPS, folder / "asked")
    write_shards(GOLD, folder / "gold")
    return QueriesToAsk(Index.load(folder / "asked"), Index.load(folder / "gold"))


class Page:
    """A client of one server."""

    def __init__(self, queries: QueriesToAsk, path: Path, by: Sequence[str] = (), **more: Any) -> None:
        plan = make_plan(queries.keys, **{"doubly": 0.0, "gold": queries.gold, "gold_every": 3, **more})
        self.store = FormStore(path, queries.index.digest)
        self.desk = Desk(queries, plan, self.store, frozenset(by))
        self.server = PageServer(self.desk)
        self.client = TestClient(self.server.app, base_url="http://127.0.0.1:8010")

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/api/{path}", json={"annotator": "ann", **body})
        return {"status": answer.status_code, **answer.json()}

    def submit(self, query: dict[str, Any], annotator: str = "ann", **form: Any) -> dict[str, Any]:
        return self.ask(
            "save", annotator=annotator, query=query["token"], form=full(query, **form), seconds=9, submit=True
        )


def full(query: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A complete form: the answer that is shown first is the best one."""
    size = len(query["answers"])
    reasons = {name: [f"{name} {number}" for number in range(size)] for name in DIMENSIONS}
    scores = {name: [5 - number for number in range(size)] for name in DIMENSIONS}
    return {"ranks": list(range(1, size + 1)), "scores": scores, "reasons": reasons, "problem": "", **more}


@pytest.fixture
def page(queries: QueriesToAsk, tmp_path: Path) -> Iterator[Page]:
    made = Page(queries, tmp_path / "forms.sqlite")
    yield made
    made.store.close()


def test_forms_are_kept_in_the_order_of_the_responses(page: Page, queries: QueriesToAsk) -> None:
    content = page.ask("next")
    keys = []
    while content["query"] is not None:
        query = content["query"]
        content = page.submit(query)
        form = page.store.forms()[-1]
        group = queries.read(form.key)
        texts = [answer["text"] for answer in query["answers"]]
        keys.append(form.key)
        for place, response in enumerate(group.responses):
            number = texts.index(response.text)
            assert (form.ranks[place], form.scores["ethics"][place]) == (number + 1, 5 - number)
            assert form.reasons["helpfulness"][place] == f"helpfulness {number}"
        assert form.hashes == tuple(response.hash for response in group.responses) and form.seconds == 9
    assert sorted(keys) == sorted([*(group.key for group in GROUPS), "golden-1"]) and keys[2] == "golden-1"
    assert content["progress"] == {"wanted": 6, "left": 0, "mine": 7}
    assert page.ask("finish")["status"] == 200 and page.server.finished


def test_nothing_of_a_query_but_words_and_media_is_sent(page: Page, queries: QueriesToAsk) -> None:
    content, sent = page.ask("next"), ""
    while content["query"] is not None:
        sent += json.dumps(content)
        content = page.submit(content["query"])
    told = ("secret-model", '"golden-1"', '"plain0"', '"own"', '"rank"', '"category"', '"meta"', '"model"')
    assert not any(word in sent for word in told) and sent.count(json.dumps(SCRIPT)) == 2
    static = "".join(page.client.get(path).text for path in ("/", "/page.js", "/page.css"))
    assert "innerHTML" not in static and "http://" not in static and "https://" not in static


def test_a_draft_is_there_again_and_back_goes_back(page: Page) -> None:
    first = page.ask("next")["query"]
    draft = full(first, ranks=[None, 2, 1][: len(first["answers"])] + [None] * (len(first["answers"]) - 3))
    assert page.ask("save", query=first["token"], form=draft)["status"] == 200
    again = page.ask("next")["query"]
    assert again["token"] == first["token"] and again["form"]["ranks"] == draft["ranks"]
    assert page.ask("next", annotator="bob")["query"]["token"] != first["token"], "it is reserved"
    assert page.ask("back", query=first["token"])["status"] == 409
    second = page.submit(first)["query"]
    back = page.ask("back", query=second["token"])["query"]
    assert back["token"] == first["token"] and back["form"]["ranks"] == list(range(1, len(first["answers"]) + 1))
    page.submit(first, problem="odd")
    assert [form.problem for form in page.store.forms()] == ["odd"], "the last one counts"
    assert page.ask("next")["query"]["token"] == second["token"]


def test_what_is_not_finished_cannot_be_submitted(page: Page) -> None:
    query = page.ask("next")["query"]
    size = len(query["answers"])
    for change, said in (
        ({"ranks": [1] + [None] * (size - 1)}, "no place yet"),
        ({"scores": {**full(query)["scores"], "ethics": [None] * size}}, "no ethics yet"),
        ({"ranks": [1] * (size + 1)}, "one value for each answer"), ({"ranks": "best"}, "one value for each answer"),
        ({"ranks": [size + 1] * size}, "places up to"), ({"ranks": [0] * size}, "one value for each answer"),
        ({"scores": {"ethics": [9] * size}}, "one value"), ({"problem": 3}, "text"),
        ({"problem": "x" * 5000}, "texts up to"),
        ({"scores": {**full(query)["scores"], "ethics": [2.5] * size}}, "whole scores"),
    ):  # fmt: skip
        answer = page.submit(query, **change)
        assert answer["status"] == 422 and said in answer["error"]["message"], answer
    assert not page.store.forms() and page.ask("finish")["status"] == 409
    nothing = {name: [None] * size for name in DIMENSIONS}, {name: [""] * size for name in DIMENSIONS}
    assert (
        page.submit(query, ranks=[None] * size, scores=nothing[0], reasons=nothing[1], problem="black")["status"] == 200
    )


def test_media_come_as_browsers_want_them(page: Page, queries: QueriesToAsk) -> None:
    content = page.ask("next")
    seen = {}
    while content["query"] is not None:
        query = content["query"]
        media = [part for turn in query["turns"] for part in turn["parts"] if "url" in part]
        media += [each for answer in query["answers"] for each in answer["media"]]
        for each in media:
            seen[each["url"]] = answer = page.client.get(f"/{each['url']}")
            if answer.status_code != 200:
                continue
            kind = answer.headers["content-type"]
            assert kind == ("video/mp4" if each["video"] else "image/jpeg")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            if each["video"]:
                part = page.client.get(f"/{each['url']}", headers={"Range": "bytes=4-11"})
                assert part.status_code == 206 and part.content == answer.content[4:12] and part.content[:4] == b"ftyp"
                assert part.headers["content-range"] == f"bytes 4-11/{len(answer.content)}"
                end = page.client.get(f"/{each['url']}", headers={"Range": "bytes=-5"})
                assert end.content == answer.content[-5:]
                assert page.client.get(f"/{each['url']}", headers={"Range": "bytes=9999999-"}).status_code == 416
                assert page.client.get(f"/{each['url']}", headers={"Range": "bytes=a-b"}).status_code == 200
        content = page.submit(query)
    statuses = sorted(answer.status_code for answer in seen.values())
    assert statuses == [200] * 6 + [422], "the broken one is said to be broken"
    assert any(answer.content == OWN.data[0] for answer in seen.values())


def test_what_is_refused(page: Page) -> None:
    client, query = page.client, page.ask("next")["query"]
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "localhost:8010"}).status_code == 200
    body = json.dumps({"annotator": "ann"})
    assert client.post("/api/next", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    as_json = {"Content-Type": "application/json"}
    assert client.post("/api/next", content="[" * 100_000, headers=as_json).status_code == 400
    assert client.post("/api/next", content=b"[1]", headers=as_json).status_code == 400
    assert client.post("/api/save", content=b"x" * (2 << 20), headers=as_json).status_code == 413
    for name in ("", "  ", 3, None, "x" * 61, ["ann"]):
        assert page.ask("next", annotator=name)["status"] == 422
    for path in (
        "/../pyproject.toml",
        "/page/../../x",
        "/media/../0",
        f"/media/{query['token']}/99?for=ann",
        "/media/x/0",
        "/api/next",
    ):
        assert client.get(path).status_code in (404, 405), path
    assert page.ask("save", query="../x", form=full(query))["status"] == 404
    assert page.ask("save", query=query["token"])["status"] == 422
    for verb in ("put", "delete", "options"):
        assert getattr(client, verb)("/api/save").status_code == 405


def test_two_annotators_get_different_orders_and_both_of_what_is_wanted_twice(
    queries: QueriesToAsk, tmp_path: Path
) -> None:
    page = Page(queries, tmp_path / "forms.sqlite", doubly=1.0, gold=[])
    shown: dict[str, dict[str, list[str]]] = {}
    for name in ("ann", "bob", "cem"):
        content = page.ask("next", annotator=name)
        while content["query"] is not None:
            query = content["query"]
            shown.setdefault(query["token"], {})[name] = [answer["text"] for answer in query["answers"]]
            content = page.submit(query, annotator=name)
    assert all(set(each) == {"ann", "bob"} for each in shown.values()) and len(shown) == 6
    assert any(each["ann"] != each["bob"] for each in shown.values())
    forms = list(submitted_forms(page.store.path))
    assert len(forms) == 12 and forms == page.store.forms()
    page.store.close()


def test_a_round_for_an_expert_asks_again_about_what_others_have_annotated(
    queries: QueriesToAsk, tmp_path: Path
) -> None:
    first = Page(queries, tmp_path / "forms.sqlite", gold=[])
    query = first.ask("next")["query"]
    while query is not None:
        query = first.submit(query)["query"]
    first.store.close()
    (tmp_path / "queue.txt").write_text("own\nclip\n")
    expert = Page(queries, tmp_path / "forms.sqlite", by=["eva"], gold=[], only=tmp_path / "queue.txt")
    assert expert.ask("next")["status"] == 403 and expert.ask("finish")["status"] == 409
    content = expert.ask("next", annotator="eva")
    assert content["progress"]["left"] == 2 and len(content["query"]["answers"]) == 2, "the first of the list"
    while content["query"] is not None:
        content = expert.submit(content["query"], annotator="eva")
    assert content["progress"] == {"wanted": 2, "left": 0, "mine": 2} and expert.ask("finish")["status"] == 200
    assert sorted(form.annotator for form in expert.store.forms() if form.key in ("own", "clip")) == [
        "ann",
        "ann",
        "eva",
        "eva",
    ]
    expert.store.close()


def test_what_cannot_be_kept_is_not_acknowledged(
    queries: QueriesToAsk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the file; once it lets go, the same form is kept."""
    monkeypatch.setattr(form_store, "_WAIT", 0.05)
    page = Page(queries, tmp_path / "forms.sqlite")
    query = page.ask("next")["query"]
    with closing(sqlite3.connect(page.store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for submit in (False, True):
            answer = page.ask("save", query=query["token"], form=full(query), submit=submit)
            assert answer["status"] == 503 and "cannot be kept: database is locked" in answer["error"]["message"]
        other.execute("ROLLBACK")
    assert page.submit(query)["status"] == 200 and len(page.store.forms()) == 1
    page.store.close()


def test_half_characters_do_no_harm(page: Page) -> None:
    query = page.ask("next")["query"]
    body = {"annotator": "a\ud800", "query": query["token"], "form": full(query, problem="\ud83d odd"), "submit": True}
    answer = page.client.post("/api/save", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    (form,) = page.store.forms()
    assert form.problem == "? odd" and form.annotator == "a\\ud800"


def test_who_is_at_a_query_keeps_it_while_another_submits(queries: QueriesToAsk, tmp_path: Path) -> None:
    """Two are wanted for each: a third is not asked about what ann has submitted and bob has before him."""
    page = Page(queries, tmp_path / "forms.sqlite", gold=[], doubly=1.0, limit=1)
    query = page.ask("next")["query"]
    assert page.ask("next", annotator="bob")["query"]["token"] == query["token"]
    page.submit(query)
    assert page.ask("next", annotator="eva")["query"] is None
    page.submit(page.ask("next", annotator="bob")["query"], annotator="bob")
    assert page.ask("finish")["status"] == 200
    page.store.close()


@pytest.mark.parametrize(
    ("asked", "status", "size"),
    [("bytes=0-1", 206, 2), ("bytes=-3", 206, 3), ("bytes=\xb2-", 200, None), (f"bytes={'1' * 5000}-", 200, None)],
)
def test_a_part_of_a_clip_is_sent_and_what_is_no_range_is_not_obeyed(
    page: Page, asked: str, status: int, size: int | None
) -> None:
    token = next(token for token, key in page.desk._keys.items() if key == "clip")
    answer = page.client.get(f"/media/{token}/0?for=ann", headers={"range": asked.encode("latin-1")})
    assert answer.status_code == status and (size is None or len(answer.content) == size)
