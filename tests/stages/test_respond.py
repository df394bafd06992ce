"""Stage `respond`: everybody's answers, in an order that says nothing, paid once, counted by what became of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_ins.chat_endpoint import ChatServer, chat_server, said, words_of
from stand_ins.small_data import draw_group

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.inference.settings import PassSettings
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import respond
from mmrlhf.summaries.responses import RespondSummary
from mmrlhf.types import Media, PreferenceGroup

PASSES = PassSettings(groups_per_batch=4)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as found:
        found.says = lambda asked: f"{asked['model']} says {words_of(asked)} {asked['seed']}"
        yield found


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve queries that nobody has answered, some with pictures."""
    folder = tmp_path_factory.mktemp("queries")
    write_shards([replace(draw_group(number), responses=()) for number in range(12)], folder)
    return folder


@pytest.fixture
def paying(runtime: Runtime, tmp_path: Path) -> Runtime:
    return replace(runtime, answers=tmp_path / "paid")


def service(server: ChatServer, model: str, **settings: Any) -> dict[str, Any]:
    usual = {"kind": "endpoint", "url": server.url, "model": model, "pause": 0.0, "retries": 1, "concurrency": 2}
    return usual | settings


def answer(out: Path, shards: Path, runtime: Runtime, responders: dict, **settings: Any) -> dict[str, Any]:
    usual = {"passes": PASSES, "max_new_tokens": 6, "keep_cut": True}
    return respond.run(out, shards=shards, responders=responders, runtime=runtime, **{**usual, **settings})


def groups_of(out: Path) -> dict[str, PreferenceGroup]:
    return {group.key: group for group in Index.load(out / "shards")}


def asked_of(server: ChatServer, model: str) -> Counter[str]:
    return Counter(words_of(content) for _, _, content in server.seen if content["model"] == model)


def test_a_query_gets_the_answers_of_all_and_its_record_says_whose(
    tmp_path: Path, queries: Path, small_policy: Path, server: ChatServer, paying: Runtime
) -> None:
    responders = {
        "own": {"kind": "local", "model": str(small_policy), "num_samples": 3},
        "big": service(server, "big"), "fast": service(server, "fast", num_samples=2),
    }  # fmt: skip
    summary = answer(tmp_path / "out", queries, paying, responders)
    found = groups_of(tmp_path / "out")
    before = {group.key: group for group in Index.load(queries)}
    assert found.keys() == before.keys() and summary["groups"] == 12
    for key, group in found.items():
        words = before[key].prompt.question
        whose = {response.text: response.model for response in group.responses}
        assert whose[f"big says {words} 0"] == "big" and whose[f"fast says {words} 1"] == "fast"
        assert [media.data for media in group.media] == [media.data for media in before[key].media]
        assert all(response.rank is None for response in group.responses) and group.pairs is None
        by = dict(zip((r.text for r in group.responses), group.meta["answered_by"], strict=True))
        said_once = {"responder": "fast", "model": "fast-2026", "sample": 1, "finish": "stop"}
        read = len(words.split()) + 100 * len(group.media)
        assert by[f"fast says {words} 1"] == [{**said_once, "tokens_in": read, "tokens_out": len(words.split()) + 3}]
        assert Counter(one["responder"] for each in by.values() for one in each) == {"own": 3, "big": 1, "fast": 2}
        assert group.meta["drawn"] == [len(each) for each in group.meta["answered_by"]]
        assert group.meta["wanted"] and "quality" not in group.meta, "what was known of old responses is gone"
    own = {
        one["model"]
        for g in found.values()
        for each in g.meta["answered_by"]
        for one in each
        if one["responder"] == "own"
    }
    assert len(own) == 1 and own != {"own"}, "a checkpoint is named by what it holds"
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert RespondSummary.from_json(content, where="here").to_json() == summary == content
    assert (
        summary["responders"]["fast"]["models"] == {"fast-2026": 24} and summary["responses"] + summary["merged"] == 72
    )


def test_the_order_says_nothing_of_whose_they_are(
    tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime
) -> None:
    server.says = lambda asked: f"{asked['model']} says {words_of(asked)}"
    named = {name: service(server, name) for name in ("a", "b", "c")}
    answer(tmp_path / "one", queries, paying, named)
    answer(tmp_path / "two", queries, paying, dict(reversed(named.items())))
    answer(tmp_path / "other", queries, paying, named, seed=1)
    orders = [
        {key: [r.model for r in group.responses] for key, group in groups_of(tmp_path / name).items()}
        for name in ("one", "two", "other")
    ]
    assert orders[0] == orders[1] != orders[2]
    assert len({order[0] for order in orders[0].values()}) == 3, "everybody comes first somewhere"


def test_what_two_say_alike_is_one_response(tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime) -> None:
    server.says = lambda asked: "yes" if asked["model"] != "c" else "no"
    summary = answer(tmp_path / "out", queries, paying, {name: service(server, name) for name in ("a", "b", "c")})
    for group in groups_of(tmp_path / "out").values():
        assert {response.text: response.model for response in group.responses} == {"yes": "a + b", "no": "c"}
    assert summary["merged"] == 12 and summary["responses_per_group"] == {"2": 12}
    with pytest.raises(DataError, match=r"as many different answers(?s:.)*12 queries"):
        answer(tmp_path / "few", queries, paying, {name: service(server, name) for name in ("a", "b")})


def test_every_way_of_no_use_is_counted_and_in_the_record(
    tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime
) -> None:
    words = [group.prompt.question for group in Index.load(queries)]
    bodies = [said("half", "length"), said(None, "content_filter"), said(""), said("no", "tool_calls")]
    server.always = {word: ("body", body) for word, body in zip(words, bodies, strict=False)}
    server.always[words[4]] = ("status", 400)
    server.always[words[5]] = ("status", 500)
    server.faults = [("status", 429), ("status", 503)]
    responders = {"big": service(server, "big", retries=2), "other": {"kind": "stand_in"}}
    summary = answer(tmp_path / "out", queries, paying, responders, keep_cut=False, max_new_tokens=99, least=1)
    big = summary["responders"]["big"]
    assert big["without"] == {
        "cut off": 1, "filtered": 1, "empty": 1, "ended by tool_calls": 1, "HTTP 400": 1, "HTTP 500": 1
    }  # fmt: skip
    assert big["usable"] == 6 and big["cut"] == 1 and big["answers"] == 12
    assert big["tries"] == {"HTTP 500": 3, "HTTP 429": 1, "HTTP 503": 1}
    missing = {g.meta["unanswered"][0]["why"] for g in groups_of(tmp_path / "out").values() if "unanswered" in g.meta}
    assert missing == set(big["without"])
    server.seen = []
    kept = answer(tmp_path / "kept", queries, paying, responders, max_new_tokens=99, least=1)
    assert set(asked_of(server, "big")) == {words[4], words[5]}, "what was paid for is kept, of use or not"
    assert kept["responders"]["big"]["usable"] == 7 and kept["responders"]["big"]["cut"] == 1


def test_no_paid_answer_is_asked_for_twice(tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime) -> None:
    """An endpoint that goes down in the middle, another artefact, another limit: each request is answered once."""
    words = [group.prompt.question for group in Index.load(queries)]
    server.always = {word: ("status", 503) for word in words[5:]}
    responders = {"a": service(server, "a", concurrency=1, retries=0, give_up_after=3), "b": {"kind": "stand_in"}}
    with pytest.raises(HubError, match=r"HTTP 503(?s:.)*is kept"):
        answer(tmp_path / "out", queries, paying, responders)
    assert set(asked_of(server, "a")) == set(words[:8])
    server.always, server.seen = {}, []
    answer(tmp_path / "out", queries, paying, responders)
    assert asked_of(server, "a") == Counter(words[5:])
    server.seen = []
    answer(tmp_path / "elsewhere", queries, paying, responders, max_cost=None, least=1, limit=7)
    assert not server.seen
    answer(tmp_path / "more", queries, paying, responders, num_samples=2)
    assert asked_of(server, "a") == Counter(words) and {c["seed"] for _, _, c in server.seen} == {1}


@pytest.mark.parametrize(
    "change", [{"temperature": 0.5}, {"seed": 1}, {"max_new_tokens": 5}, {"responders": {"longest_side": 9}},
               {"responders": {"options": {"top_p": 0.5}}}, {"responders": {"model": "other"}}],
    ids=str,
)  # fmt: skip
def test_another_request_is_another_answer(
    tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime, change: dict[str, Any]
) -> None:
    asked = {"least": 1, "limit": 2}
    answer(tmp_path / "one", queries, paying, {"a": service(server, "a")}, **asked)
    server.seen = []
    changed = {"a": {**service(server, "a"), **change.get("responders", {})}}
    rest = {name: value for name, value in change.items() if name != "responders"}
    answer(tmp_path / "two", queries, paying, changed, **asked, **rest)
    assert len(server.seen) == 2


PRICES = {"price_in": 1000.0, "price_out": 1000.0, "tokens_per_answer": 3}


def test_nothing_is_asked_where_it_is_expected_to_cost_too_much(
    tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime
) -> None:
    named = {"a": service(server, "a", **PRICES), "b": service(server, "b", **PRICES)}
    with pytest.raises(ConfigError, match=r"would cost more(?s:.)*about 0.\d\d(?s:.)*at most 0.1"):
        answer(tmp_path / "out", queries, paying, named, max_cost=0.1)
    assert not server.seen
    estimate = json.loads((tmp_path / "out" / "estimate.json").read_text())["a"]
    assert estimate["answers"] == 12 and estimate["tokens_out"] == 36 and estimate["most_tokens_out"] == 72
    assert estimate["cost"] == pytest.approx((estimate["tokens_in"] + 36) / 1000) and estimate["seconds"] > 0
    with pytest.raises(ConfigError, match="needs prices"):
        answer(tmp_path / "out", queries, paying, {**named, "c": service(server, "c")}, max_cost=9)


def test_the_limit_stops_before_it_is_exceeded_and_a_higher_one_goes_on(
    tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime
) -> None:
    """Answers are longer than expected: 1 a request is expected, up to 20 can come; the money ends in the middle."""
    server.says = lambda asked: "word " * 20
    named = {
        "a": service(server, "a", price_in=1000.0, price_out=10_000.0, tokens_per_answer=1),
        "b": {"kind": "stand_in", "price_in": 0.0, "price_out": 0.0},
    }
    text_only = tmp_path / "texts"
    write_shards([draw_group(number).without_media() for number in range(30)], text_only)
    asked: dict[str, Any] = {"max_new_tokens": 20}
    with pytest.raises(ConfigError, match=r"limit on the cost has stopped(?s:.)*is kept"):
        answer(tmp_path / "out", text_only, paying, named, max_cost=2.0, **asked)
    once = asked_of(server, "a")
    spent = sum(count * (len(word.split()) + 200) / 1000 for word, count in once.items())
    assert 5 < len(once) < 12 and spent <= 2.0
    summary = answer(tmp_path / "out", text_only, paying, named, max_cost=20.0, least=1, **asked)
    assert asked_of(server, "a") == Counter(set(asked_of(server, "a"))) and len(asked_of(server, "a")) == 30
    every = sum((len(word.split()) + 200) / 1000 for word in asked_of(server, "a"))
    assert summary["responders"]["a"]["cost"] == pytest.approx(every)


def test_a_picture_that_nobody_can_read_costs_its_query_alone(
    tmp_path: Path, server: ChatServer, paying: Runtime, small_policy: Path
) -> None:
    damaged = replace(draw_group(1), media=(Media("image", ("0.png",), (b"\x89PNG no picture",)),), key="broken")
    write_shards([damaged, *(draw_group(number) for number in range(2, 6))], tmp_path / "shards")
    named = {"a": service(server, "a"), "own": {"kind": "local", "model": str(small_policy)}}
    summary = answer(tmp_path / "out", tmp_path / "shards", paying, named)
    assert (
        summary["quarantined"]["queries"] == 1
        and summary["groups"] == 4
        and "broken" not in groups_of(tmp_path / "out")
    )


def work_off(folder: Path, *, lose: int = 0, fail: int = 0) -> None:
    """A batch service: answers in another order, some missing, some in a file of errors."""
    lines = [
        json.loads(line)
        for path in sorted((folder / "requests").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    random.Random(0).shuffle(lines)
    results = folder / "results"
    results.mkdir(exist_ok=True)
    number = len(list(results.iterdir()))
    bad = [
        {"custom_id": row["custom_id"], "response": None, "error": {"code": "batch_expired"}} for row in lines[:fail]
    ]
    usage = {"prompt_tokens": 5, "completion_tokens": 4}
    good = []
    for row in lines[fail + lose :]:
        body = json.loads(said(f"batch says {words_of(row['body'])}", model="batched", usage=usage))
        good.append({"custom_id": row["custom_id"], "error": None, "response": {"status_code": 200, "body": body}})
    for name, rows in ((f"{number}-errors.jsonl", bad), (f"{number}-output.jsonl", good)):
        (results / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_batch_is_written_worked_off_elsewhere_and_read(
    tmp_path: Path, queries: Path, server: ChatServer, paying: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "batch"
    batch = {
        "kind": "batch",
        "folder": str(folder),
        "model": "large",
        "max_requests": 5,
        "price_in": 1.0,
        "price_out": 2.0,
    }
    named = {"a": service(server, "a"), "large": batch}
    with pytest.raises(DataError, match=r"waits to be worked off(?s:.)*12 requests in 3 files(?s:.)*vllm run-batch"):
        answer(tmp_path / "out", queries, paying, named)
    first = json.loads((folder / "requests" / "large-00000.jsonl").read_text().splitlines()[0])
    assert first["custom_id"].split("~")[1:] == ["large", "0"] and first["body"]["model"] == "large"
    work_off(folder, lose=2, fail=2)
    with pytest.raises(HubError, match=r"were not answered(?s:.)*4 of 12(?s:.)*2 x no result"):
        answer(tmp_path / "out", queries, paying, named)
    left = [line for path in (folder / "requests").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(left) == 4, "what is in the folder is what is still to be answered"
    times = {path: path.stat().st_mtime_ns for path in (folder / "requests").iterdir()}
    with pytest.raises(HubError):
        answer(tmp_path / "out", queries, paying, named)
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "requests").iterdir()}
    work_off(folder, lose=1)
    (folder / "results" / "stray.jsonl").write_text(
        json.dumps({"custom_id": "x~y~0", "response": json.loads(said("x"))}) + "\n{"
    )
    summary = answer(tmp_path / "out", queries, paying, named, least=1)
    large = summary["responders"]["large"]
    assert large["usable"] == 11 and large["without"] == {"no result": 1}, "one may be missing, and is counted"
    assert large["models"] == {"batched": 11} and large["cost"] == pytest.approx(11 * (5 + 8) / 1e6)
    for text in ("requests that this stage does not ask, such as x~y~0", "no line of results"):
        assert text in caplog.text
    assert len(asked_of(server, "a")) == 12 == len(server.seen)
    with pytest.raises(DataError, match=r"a batch was made by something else(?s:.)*temperature: before 1.0, now 0.3"):
        answer(tmp_path / "out", queries, paying, named, temperature=0.3)


@pytest.mark.parametrize(
    ("responders", "told"),
    [
        ({}, "nobody is named"),
        ({"a": {"kind": "endpont"}}, r"responders.a.kind(?s:.)*endpoint\?"),
        ({"a": {"kind": "local"}}, "responders.a.model"),
        ({"a": {"kind": "local", "model": "./nowhere/model"}}, r"does not exist(?s:.)*responders.a.model"),
        ({"a": {"kind": "local", "model": "m", "url": "x"}}, r"no such setting(?s:.)*url"),
        ({"a": {"kind": "endpoint", "url": "http://h/v1", "model": "m", "concurency": 2}}, "concurrency"),
        ({"a": {"kind": "endpoint", "url": "http://h/v1", "model": "m", "concurrency": 0}}, "responders.a.concurrency"),
        ({"a": {"kind": "endpoint", "url": "h", "model": "m"}}, "no address of an endpoint"),
        ({"a": {"kind": "endpoint", "url": "http://h/v1", "model": "m", "price_in": 1.0}}, "responders.a.price_in"),
        ({"a": {"kind": "endpoint", "url": "http://h/v1", "model": "m", "options": {"n": 2}}}, "responders.a.options"),
        ({"a": {"kind": "stand_in", "temperature": -1}}, "responders.a.temperature"),
        ({"a": {"kind": "stand_in", "temperature": 0, "num_samples": 2}}, r"the same(?s:.)*responders.a.temperature"),
        ({"a~b": {"kind": "stand_in"}}, "cannot be called this"),
        ({"a": "stand_in"}, "a responder has settings"),
        ({"a": {"kind": "batch", "model": "m"}}, "responders.a.folder"),
        ({"a": {"kind": "stand_in"}}, "as many answers as are wanted"),
    ],
    ids=str,
)  # fmt: skip
def test_responders_that_cannot_be_made_are_named_before_anything_runs(responders: dict, told: str) -> None:
    settings = {"num_samples": 1, "temperature": 1.0, "max_new_tokens": 8, "seed": 0, "least": 2}
    with pytest.raises(ConfigError, match=told):
        respond.check_settings({**settings, "responders": responders})
