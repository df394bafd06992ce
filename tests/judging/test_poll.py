"""A generative judge on a benchmark: every number is known beforehand from what the judge was made to say."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stand_ins.clips import make_clip
from stand_ins.judge_stand_in import JudgeServer, judge_server

from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.judging.judge_model import JudgeSettings
from mmrlhf.judging.polling import Polling
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import rewardbench
from mmrlhf.summaries.scores import RewardBenchSummary
from mmrlhf.types import Media, PreferenceGroup, Response

NAME = "judge judge"
QUERIES = 12


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as found:
        yield found


@pytest.fixture
def judge(server) -> JudgeSettings:
    return JudgeSettings(server.url, "judge", retries=0, concurrency=2, timeout=20.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_cost": 1.0}, r"needs prices(?s:.)*judge.max_cost(?s:.)*given: 1\n"),
        ({"price_in": 2.0}, "price_out=None"),
        ({"price_out": 2.0, "max_cost": 1.0}, "price_in=None"),
    ],
)
def test_a_limit_on_the_cost_is_not_passed_over(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JudgeSettings("http://localhost/v1", "judge", **wrong)
    JudgeSettings("http://localhost/v1", "judge", price_in=0.0, price_out=2.0, max_cost=1.0)


def benchmark(folder: Path, *, responses: int = 2, source: str = "", media: tuple[Media, ...] = ()) -> Path:
    """Query n has answers `quality q of n`, the best one (q = 0) first; two categories."""
    groups = []
    for number in range(QUERIES):
        said = tuple(Response(f"quality {q} of {number}", rank=min(q, 1) + 1) for q in range(responses))
        category = "odd" if number % 2 else "even"
        groups.append(
            PreferenceGroup(f"q{number:02d}", f"question {number}?", said, media, category=category, source=source)
        )
    write_shards(groups, folder)
    return folder


def shown(text: str) -> list[tuple[int, int]]:
    """(quality, query) of the answers in the order that the judge sees them."""
    return [(int(quality), int(query)) for quality, query in re.findall(r"quality (\d+) of (\d+)", text)]


def verdict(place: int) -> str:
    return f"I looked at them. Verdict: {'ABCD'[place]}"


def knows(text: str) -> str:
    return verdict(shown(text).index(min(shown(text))))


@pytest.fixture
def asked(tmp_path, runtime, judge, monkeypatch) -> Callable[..., dict[str, Any]]:
    """The stage; its page, half of the time that a run takes, is only drawn for a test that looks at it."""
    runtime, page = replace(runtime, verdicts=tmp_path / "verdicts"), rewardbench.page

    def run(shards: Path, name: str = "out", drawn: bool = False, **given: Any) -> dict[str, Any]:
        monkeypatch.setattr(rewardbench, "page", page if drawn else lambda summary: "")
        given = {"judge": judge, "runtime": runtime} | given
        return rewardbench.run(tmp_path / name, shards=shards, **given)

    return run


def test_a_judge_that_knows_is_right_in_both_orders(tmp_path, server, asked):
    server.says = knows
    summary = asked(benchmark(tmp_path / "shards"))
    report, found = summary["accuracy"]["annotators"][NAME], summary["judges"][NAME]
    assert report["acc"]["mean"] == report["acc_plus"]["mean"] == 1.0 and report["num_pairs"] == QUERIES
    assert list(summary["accuracy"]["annotators"])[0] == NAME, "in front of the baselines"
    assert found["consistent"]["mean"] == 1.0 and found["places"] == {"2": [0.5, 0.5]}
    assert found["verdicts"] == len(server.seen) == 2 * QUERIES
    assert (found["no_verdict"], found["excluded"], found["ballots"]) == ({}, 0, {"pair": QUERIES})
    rows = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * QUERIES and {row["chosen"] for row in rows} == {0}
    assert {tuple(row["shown"]) for row in rows} == {(0, 1), (1, 0)}
    table = (tmp_path / "out" / "rewardbench.md").read_text().splitlines()
    assert "same in all orders | for the first place | no verdict | pairs / queries left out | cost" in table[0]
    assert f"0.500 of 1/2 | 0 of {2 * QUERIES} | 0 / 0 |" in table[2]


def test_a_judge_that_prefers_a_place_is_never_right(tmp_path, server, asked):
    """One order alone would call it right in half of the cases; both orders call every pair a tie, which is wrong."""
    server.says = lambda text: verdict(0)
    summary = asked(benchmark(tmp_path / "shards"), drawn=True)
    report, found = summary["accuracy"]["annotators"][NAME], summary["judges"][NAME]
    assert report["acc"]["mean"] == 0.0 and report["num_ties"] == QUERIES
    assert found["consistent"]["mean"] == 0.0 and found["places"] == {"2": [1.0, 0.0]}
    page = (tmp_path / "out" / "rewardbench.html").read_text()
    assert "share of comparisons whose orders agree: judge judge 0.000 (0.000 to 0.2" in page
    assert "first place chosen, times chance: judge judge, 2 answers 2.000" in page


def test_one_order_is_drawn_once_for_all(tmp_path, server, asked):
    server.says = lambda text: verdict(0)
    shards, polling = benchmark(tmp_path / "shards"), Polling(orders="drawn")
    summary = asked(shards, polling=polling)
    firsts = [shown(row["messages"][0]["content"])[0] for row in server.seen]
    right = sum(quality == 0 for quality, _ in firsts)
    assert len(firsts) == QUERIES and 0 < right < QUERIES, "drawn, not given"
    assert summary["accuracy"]["annotators"][NAME]["acc"]["mean"] == right / QUERIES
    assert "consistent" not in summary["judges"][NAME]
    server.seen.clear()
    again = asked(shards, "again", polling=polling)
    assert not server.seen and again["accuracy"] == summary["accuracy"]
    other = asked(shards, "other", polling=replace(polling, seed=1))
    assert other["accuracy"]["annotators"][NAME]["acc"]["mean"] != right / QUERIES or server.seen


@pytest.mark.parametrize("words", ["I cannot tell.", "Verdict: A. No, Verdict: B", "Verdict: C", ""])
def test_what_cannot_be_read_is_left_out_and_counted(tmp_path, server, asked, words):
    """Wrong on queries 0 to 3; no verdict in one order of 4 and in both of 5: two queries of twelve have no number."""

    def says(text: str) -> str:
        (quality, query), _ = shown(text)
        if query == 5 or (query == 4 and quality == 0):
            return words
        return verdict(shown(text).index((max if query < 4 else min)(shown(text))))

    server.says = says
    summary = asked(benchmark(tmp_path / "shards"))
    report, found = summary["accuracy"]["annotators"][NAME], summary["judges"][NAME]
    assert (report["num_pairs"], report["acc"]["mean"]) == (QUERIES - 2, 6 / 10)
    assert found["no_verdict"] == {"no verdict" if words else "empty": 3}
    assert (found["excluded"], found["excluded_pairs"], found["verdicts"]) == (2, 2, 2 * QUERIES)
    assert summary["accuracy"]["annotators"]["longer wins"]["num_pairs"] == QUERIES, "the others keep theirs"
    assert summary["difference"]["annotators"]["random"]["num_pairs"] == QUERIES - 2


@pytest.mark.parametrize(("fault", "reason"), [("length", "cut off"), ("content_filter", "filtered")])
def test_an_answer_that_did_not_end_by_itself_is_no_verdict(tmp_path, server, asked, judge, fault, reason):
    """Even where words of a verdict are in what came; it is no failure that may pass, and the run goes on."""
    server.says, server.failing = knows, [fault] * 2
    summary = asked(benchmark(tmp_path / "shards"), judge=replace(judge, concurrency=1))
    found = summary["judges"][NAME]
    assert found["no_verdict"] == {reason: 2} and found["excluded"] in (1, 2)
    assert summary["accuracy"]["annotators"][NAME]["acc"]["mean"] == 1.0


def test_no_verdict_at_all_ends_the_run(tmp_path, server, asked):
    server.says = lambda text: "Both are lovely."
    with pytest.raises(DataError, match=r"no verdicts that can be read(?s:.)*Both are lovely"):
        asked(benchmark(tmp_path / "shards"))


def test_all_pairs_of_a_query_and_acc_plus(tmp_path, server, asked):
    """Four responses, one best: three pairs a query. The judge takes the second best for the best in odd queries."""

    def says(text: str) -> str:
        order = sorted(shown(text))
        wrong = order[0][1] % 2 and {quality for quality, _ in order} == {0, 1}
        return verdict(shown(text).index(order[1 if wrong else 0]))

    server.says = says
    report = asked(benchmark(tmp_path / "shards", responses=4))["accuracy"]["annotators"][NAME]
    assert report["num_pairs"] == 3 * QUERIES
    assert report["acc"]["mean"] == pytest.approx(5 / 6) and report["acc_plus"]["mean"] == 0.5
    assert report["categories"]["odd"]["acc_plus"]["mean"] == 0.0


def test_a_pair_without_a_verdict_leaves_its_query_out_of_acc_plus_alone(tmp_path, server, asked):
    """Of three pairs one lacks a verdict in queries 0 and 1; query 2 has another pair wrong."""

    def says(text: str) -> str:
        order = sorted(shown(text))
        (_, query), pair = order[0], {quality for quality, _ in order}
        if query < 2 and pair == {0, 3}:
            return "Hard to say."
        return verdict(shown(text).index(order[1 if query == 2 and pair == {0, 1} else 0]))

    server.says = says
    summary = asked(benchmark(tmp_path / "shards", responses=4))
    report, found = summary["accuracy"]["annotators"][NAME], summary["judges"][NAME]
    assert (report["num_pairs"], report["acc"]["mean"]) == (3 * QUERIES - 2, pytest.approx(33 / 34))
    assert report["acc_plus"]["mean"] == pytest.approx(9 / 10)
    assert (found["excluded_pairs"], found["excluded"], found["no_verdict"]) == (2, 2, {"no verdict": 4})
    even = report["categories"]["even"]
    assert (even["acc"]["mean"], even["acc_plus"]["mean"]) == (pytest.approx(16 / 17), pytest.approx(4 / 5))
    ahead = summary["difference"]["annotators"]["longer wins"]
    assert ahead["num_pairs"] == 3 * QUERIES - 2
    longer = summary["accuracy"]["annotators"]["longer wins"]
    assert longer["num_pairs"] == 3 * QUERIES and ahead["acc_plus"]["mean"] == pytest.approx(9 / 10)


def test_the_best_of_four_stands_at_every_place(tmp_path, server, asked):
    """A judge that takes the first place in half of the rotations, and else the best, still finds it: 3 votes of 4."""
    server.says = lambda text: verdict(0) if shown(text)[0][0] in (0, 2) else knows(text)
    summary = asked(benchmark(tmp_path / "shards", responses=4), polling=Polling(ballot="best"))
    report, found = summary["accuracy"]["annotators"][NAME], summary["judges"][NAME]
    assert report["acc_plus"]["mean"] == 1.0 and found["verdicts"] == 4 * QUERIES
    assert found["consistent"]["mean"] == 0.0 and sum(found["places"]["4"]) == pytest.approx(1.0)
    places = [
        {quality: place for place, (quality, _) in enumerate(shown(r["messages"][0]["content"]))} for r in server.seen
    ]
    assert sorted(each[0] for each in places) == sorted([0, 1, 2, 3] * QUERIES), (
        "the best is at each place equally often"
    )


def test_a_query_with_more_responses_than_letters_is_left_out_and_counted(tmp_path, server, asked):
    server.says = knows
    few = [Response(f"quality {q} of 1", rank=q + 1) for q in range(2)]
    many = [Response(f"quality {q} of 2", rank=min(q, 1) + 1) for q in range(27)]
    groups = [PreferenceGroup(f"q{len(own)}", "?", tuple(own)) for own in (few, many)]
    write_shards(groups, tmp_path / "shards")
    summary = asked(tmp_path / "shards", polling=Polling(ballot="best"))
    assert summary["quarantined"]["queries"] == 1 and len(server.seen) == 2
    assert summary["accuracy"]["annotators"][NAME]["num_pairs"] == 1


def test_two_judges_of_one_name_are_refused(tmp_path, asked):
    """One would stand for both, without a word."""
    with pytest.raises(ConfigError, match="two judges of one name"):
        asked(benchmark(tmp_path / "shards"), other_judges={"judge": tmp_path / "earlier"})


def test_ratings_one_by_one(tmp_path, server, asked):
    """Odd queries get equal ratings, which are ties."""
    server.says = lambda text: f"Rating: {9 - 4 * shown(text)[0][0] * (1 - shown(text)[0][1] % 2)}"
    summary = asked(benchmark(tmp_path / "shards"), polling=Polling(ballot="rating"))
    report, found = summary["accuracy"]["annotators"][NAME], summary["judges"][NAME]
    assert report["acc"]["mean"] == 0.5 and report["num_ties"] == QUERIES / 2
    assert found["places"] == {} and "consistent" not in found


def test_votes_decide_by_their_majority(tmp_path, server, asked):
    """Of three votes in each order one is wrong; each is asked, and asked once."""
    turns: dict[str, int] = {}

    def says(text: str) -> str:
        turns[text] = turns.get(text, 0) + 1
        best = shown(text).index(min(shown(text)))
        return verdict(1 - best if turns[text] == 2 else best)

    server.says = says
    polling = Polling(votes=3, temperature=0.7)
    summary = asked(shards := benchmark(tmp_path / "shards"), polling=polling)
    assert set(turns.values()) == {3} and {row["temperature"] for row in server.seen} == {0.7}
    assert summary["accuracy"]["annotators"][NAME]["acc"]["mean"] == 1.0
    assert summary["judges"][NAME]["verdicts"] == 6 * QUERIES and summary["judges"][NAME]["consistent"]["mean"] == 1.0
    server.seen.clear()
    assert asked(shards, "again", polling=polling)["judges"][NAME]["use"]["cached"] == 6 * QUERIES and not server.seen
    with pytest.raises(ConfigError, match="all be the same"):
        Polling(votes=3)


def test_what_it_may_cost_is_known_before_anything_is_asked(tmp_path, server, asked, judge):
    server.says = knows
    shards = benchmark(tmp_path / "shards")
    paid = replace(judge, price_in=1000.0, price_out=1000.0)
    with pytest.raises(ConfigError, match=r"cost more(?s:.)*judge.max_cost(?s:.)*24 verdicts"):
        asked(shards, judge=replace(paid, max_cost=1.0))
    assert not server.seen
    first = asked(shards, judge=replace(paid, max_cost=100.0))["judges"][NAME]
    assert 0 < first["cost"] == first["use"]["cost"]
    again = asked(shards, "again", judge=replace(paid, max_cost=0.0))["judges"][NAME]
    assert again["use"]["cost"] == 0 and again["cost"] == first["cost"], (
        "what the verdicts cost, whoever asked for them"
    )


def test_a_stopped_run_asks_for_the_rest_alone(tmp_path, server, asked, judge):
    """Answers that do not come are no verdicts of the judge's: the run ends, and the next one asks for them."""
    server.says, server.failing = knows, ["error"] * 3
    shards = benchmark(tmp_path / "shards")
    with pytest.raises((DataError, HubError), match=r"verdicts are missing(?s:.)*3 of 24"):
        asked(shards, judge=replace(judge, concurrency=1))
    assert not (tmp_path / "out" / "metrics.json").exists()
    server.seen.clear()
    assert asked(shards)["accuracy"]["annotators"][NAME]["acc"]["mean"] == 1.0 and len(server.seen) == 3
    server.failing = ["error"]
    few = asked(benchmark(tmp_path / "other", responses=3), "few", judge=replace(judge, concurrency=1, max_missing=0.1))
    assert few["judges"][NAME]["excluded"] == 1


def test_the_judge_sees_pictures_and_the_reward_model_stands_beside_it(tmp_path, server, small_groups, critic, asked):
    server.says = lambda text: verdict(0)
    groups = [group for group in small_groups if group.media and group.ranked_pairs()][:3]
    write_shards(groups, tmp_path / "shards")
    summary = asked(tmp_path / "shards", reward_model=critic, critiques=CritiqueSettings(max_tokens=4))
    assert list(summary["accuracy"]["annotators"])[:2] == ["reward model", NAME]
    for row in server.seen:
        *pictures, text = row["messages"][0]["content"]
        assert pictures and all(each["image_url"]["url"].startswith("data:image/") for each in pictures)
        assert text["type"] == "text"


def test_judges_of_several_runs_stand_in_one_table(tmp_path, server, asked):
    """Each keeps its numbers, also where the packed set has its responses in another order."""
    server.says = lambda text: verdict(0) if shown(text)[0][1] % 2 else knows(text)
    asked(benchmark(tmp_path / "shards"), "half")
    groups = [index.read(number) for index in [Index.load(tmp_path / "shards")] for number in range(len(index))]
    turned = [replace(group, responses=group.responses[::-1]) for group in groups]
    write_shards(turned, tmp_path / "turned")
    polling = Polling(ballot="rating")
    server.says = lambda text: f"Rating: {9 - shown(text)[0][0]}"
    both = asked(tmp_path / "turned", polling=polling, other_judges={"half": tmp_path / "half"})
    reports = both["accuracy"]["annotators"]
    assert list(reports)[:2] == [NAME, "judge half"]
    assert (reports[NAME]["acc"]["mean"], reports["judge half"]["acc"]["mean"]) == (1.0, 0.5)
    assert both["judges"]["judge half"]["consistent"]["mean"] == 0.5 and "consistent" not in both["judges"][NAME]
    with pytest.raises(DataError, match="nothing of these queries"):
        other = benchmark(tmp_path / "three", responses=3)
        asked(other, "none", judge=None, other_judges={"half": write_without_margins(tmp_path)})
    with pytest.raises(DataError, match="cannot be read"):
        asked(tmp_path / "turned", "absent", judge=None, other_judges={"half": tmp_path / "shards"})


def write_without_margins(folder: Path) -> Path:
    content = json.loads((folder / "half" / "judge.json").read_text())
    (folder / "empty.json").write_text(json.dumps({**content, "margins": {}}))
    return folder / "empty.json"


def test_two_pictures_of_one_text_are_told_apart(tmp_path, server, asked):
    """Media of single responses stand in front, each behind its answer's label, and change places with the answers."""
    shades = {"dark": 10, "light": 240}
    pictures = {name: Media("image", (f"{name}.png",), (flat(shade),)) for name, shade in shades.items()}
    said = tuple(Response("a square", rank, media=(pictures[name],)) for rank, name in ((1, "light"), (2, "dark")))
    write_shards([PreferenceGroup("q", "What is shown?", said)], tmp_path / "shards")
    server.says = lambda text: verdict(0)
    asked(tmp_path / "shards")
    orders = []
    for row in server.seen:
        first, one, second, two, words = row["messages"][0]["content"]
        assert first["text"] == "What answer A (1) is about:" and second["text"] == "What answer B (2) is about:"
        assert words["text"].count("a square") == 2
        orders.append(tuple(shade_of(part["image_url"]["url"]) for part in (one, two)))
    assert sorted(orders) == [(10, 240), (240, 10)]


def flat(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def shade_of(address: str) -> int:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).getpixel((0, 0))[0]


def test_a_clip_is_shown_as_pictures_and_a_damaged_picture_is_no_verdict(tmp_path, server, asked):
    clip, damaged = Media("video", ("mp4",), (make_clip(20),)), Media("image", ("0.png",), (flat(9)[:40],))
    said = (Response("yes", 1), Response("no", 2))
    groups = [PreferenceGroup("clip", "What?", said, (clip,)), PreferenceGroup("damaged", "What?", said, (damaged,))]
    write_shards(groups, tmp_path / "shards")
    server.says = lambda text: verdict(0)
    found = asked(tmp_path / "shards", polling=Polling(num_frames=3))["judges"][NAME]
    assert [len(row["messages"][0]["content"]) for row in server.seen] == [4, 4]
    assert found["excluded"] == 1 and sum(found["no_verdict"].values()) == 2 and "no verdict" not in found["no_verdict"]


def test_many_pictures_are_not_held_at_once(tmp_path, server, asked, monkeypatch):
    """In windows of two requests or so all are asked all the same, and once."""
    monkeypatch.setattr("mmrlhf.judging.judge_model.WINDOW", 250)
    server.says = knows
    summary = asked(benchmark(tmp_path / "shards"))
    assert summary["accuracy"]["annotators"][NAME]["acc"]["mean"] == 1.0 and len(server.seen) == 2 * QUERIES
    assert RewardBenchSummary.from_json(summary, where="test").to_json() == summary


def test_without_a_model_nobody_judges(tmp_path, asked):
    assert "judges" not in asked(benchmark(tmp_path / "shards"), drawn=True, judge=JudgeSettings())
    assert "Does the order decide" not in (tmp_path / "out" / "rewardbench.html").read_text()
