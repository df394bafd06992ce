"""The report: complete from complete inputs, silent about absent ones, one file, safe against markup in the data."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import report_data

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.metrics.ranking import accuracy_report
from mmrlhf.reporting import best_answers, plots
from mmrlhf.reporting.accuracy import scored_groups
from mmrlhf.reporting.critique_section import critiques_while_training
from mmrlhf.reporting.inputs import best_of_before, pair_betas, paired_answers, read_answers, read_stage
from mmrlhf.reporting.sample_cards import choose_rows, response_letter
from mmrlhf.shards import remote
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages.report import CONTENTS, render, run
from mmrlhf.summaries.rankings import Accuracy
from mmrlhf.types import PreferenceGroup, Response


def no_trainer(**settings):
    raise AssertionError("the report trains nothing")


RUNTIME = Runtime(trainer=no_trainer, loggers=lambda folder, stage: [], progress=False)


def made_up_accuracy():
    """Accuracy tables as the score stage writes them."""
    rng = np.random.default_rng(0)
    keys = [f"q{i // 3}" for i in range(90)]
    categories = [report_data.CATEGORIES[i // 3 % 5] for i in range(90)]
    scorers = {"reward model": 1.2, "longer wins": 0.1, "random": 0.0}
    tables = {
        judge: {name: accuracy_report(keys, rng.normal(gap, 1, 90), rng.normal(0, 1, 90), categories)
                for name, gap in scorers.items()}
        for judge in ("annotators", "truth")
    }  # fmt: skip
    read = Accuracy.from_json
    return {judge: {name: read(own, where="") for name, own in table.items()} for judge, table in tables.items()}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    return report_data.make_run(tmp_path_factory.mktemp("run"), made_up_accuracy(), number=40, steps=60)


@pytest.fixture(scope="module")
def whole(artefacts, tmp_path_factory):
    """The page and summary of a complete run."""
    out = tmp_path_factory.mktemp("report")
    summary = run(out, **artefacts, objective=MMDPO(), num_samples=6, runtime=RUNTIME)
    return (out / "report.html").read_text(), summary, json.loads((out / "metrics.json").read_text())


class Outline(HTMLParser):
    """Collects ids, tags and addresses; notices tags that are not closed."""

    VOID = {"meta", "img", "br", "path", "use", "rect", "link"}

    def __init__(self, page):
        super().__init__()
        self.ids, self.addresses, self.tags, self.open, self.wrong = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            top = self.open.pop()
            if top != tag:
                self.wrong.append((top, tag))


def test_every_section_is_there_and_the_html_is_whole(whole):
    outline = Outline(whole[0])
    assert not outline.wrong and not outline.open
    # A run without rounds of self-improvement has no section about them.
    assert {anchor for anchor, _ in CONTENTS} - {"rounds"} <= set(outline.ids)
    assert 'class="missing"' not in whole[0]
    assert (
        outline.tags.count("svg") > 20
        and outline.tags.count("article") == 6 + report_data.SURPRISES + report_data.CRITIQUED
    )


def test_the_page_needs_no_other_file(whole):
    outline = Outline(whole[0])
    assert all(address.startswith(("#", "data:image/")) for address in outline.addresses)
    assert "@import" not in whole[0] and "url(http" not in whole[0]


def test_text_from_data_is_escaped(whole):
    assert "<b>one</b>" not in whole[0] and "&lt;b&gt;one&lt;/b&gt;" in whole[0]
    assert "<i>Checked</i>" not in whole[0] and "no response &lt;text&gt;" in whole[0]


@settings(max_examples=12, deadline=None)
@given(st.text(max_size=80))
def test_any_title_keeps_the_page_whole(title):
    page = {name: {"missing": title, "command": title} for name, _ in CONTENTS}
    page["run"] = {"times": None, "reproduce": title, "versions": {title: title}, "stages": []}
    outline = Outline(render(title, title, page, [{"label": title, "value": title, "detail": title}]))
    assert not outline.wrong and not outline.open and outline.tags.count("script") == 1


def test_colours_follow_the_page(whole):
    assert not re.search(r"#0[0a]0[0a]0\d", whole[0]), "no stand-in colour is left"
    assert "var(--c1)" in whole[0] and "var(--muted)" in whole[0]


def test_critiques_of_validations_lie_beside_their_responses(artefacts):
    index = Index.load(artefacts["shards"])
    reward = read_stage("reward", artefacts["reward"])
    cards = critiques_while_training(reward, index)
    assert len(cards) == report_data.CRITIQUED and all(card["pictures"] for card in cards)
    for card in cards:
        assert [response["rank"] for response in card["responses"]] == sorted(r["rank"] for r in card["responses"])
        for response in card["responses"]:
            first, last = response["verdicts"]
            assert (first["step"], last["step"]) == (100, 300) and last["reward"] - first["reward"] == 2
    assert critiques_while_training(read_stage("sft", artefacts["sft"]), index) == []
    assert critiques_while_training(reward, None)[0]["pictures"] == []


def other_media(artefacts, folder, spoil):
    """The shards again, with the same queries and other bytes."""
    groups = [spoil(Index.load(artefacts["shards"]).read(row)) for row in range(40)]
    write_shards(groups, folder)
    return {**artefacts, "shards": folder}


def no_pictures(group):
    media = tuple(replace(item, data=tuple(b"no picture" for _ in item.data)) for item in group.media)
    return replace(group, media=media)


def test_a_picture_that_cannot_be_decoded_ends_no_page(artefacts, tmp_path, monkeypatch, caplog):
    """Every card says so: samples, pairs that are wrong by most, critiques of validations."""
    draw_nothing(monkeypatch)
    inputs = other_media(artefacts, tmp_path / "shards", no_pictures)
    run(tmp_path / "out", **inputs, objective=MMDPO(), num_samples=6, runtime=RUNTIME)
    page = (tmp_path / "out" / "report.html").read_text()
    cards = 6 + report_data.SURPRISES + report_data.CRITIQUED
    assert page.count("1 cannot be read") == page.count("<article") == cards
    assert ">text only</span>" not in page and "data:image" not in page and not Outline(page).wrong
    assert len(re.findall("not shown: .*decoded\n.*shard-00000.tar:[a-z]+-00", caplog.text)) == cards


def test_a_query_that_cannot_be_read_is_left_out_of_the_page(artefacts, tmp_path, monkeypatch, caplog):
    """One flipped byte in every picture: the checksums differ, the records are whole."""
    draw_nothing(monkeypatch)
    shutil.copytree(artefacts["shards"], tmp_path / "shards")
    inputs = {**artefacts, "shards": tmp_path / "shards"}
    index = Index.load(inputs["shards"])
    for row in range(len(index)):
        _, shard, members = index.entries.place(row)
        for name, (offset, _, _) in members.items():
            if name != "json":
                with (inputs["shards"] / shard).open("r+b") as file:
                    file.seek(offset)
                    file.write(b"?")
    summary = run(tmp_path / "out", **inputs, objective=MMDPO(), num_samples=6, runtime=RUNTIME)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article") == report_data.CRITIQUED and page.count("picture not at hand") == 2
    assert "member is damaged" in caplog.text and 0.1 <= summary["beta_mean"] <= 0.15


@pytest.mark.parametrize("quality", [["good", "bad"], [1, None], [10**400, 1], [[1], [2]], [True, False], "ab", 3, {}])
def test_what_strangers_call_quality_is_not_shown_as_the_truth(tmp_path, quality, caplog):
    ranked = tuple(Response(text, rank=rank) for rank, text in enumerate("ab", start=1))
    write_shards([PreferenceGroup("q", "?", ranked, meta={"quality": quality})], tmp_path / "shards")
    run(tmp_path / "out", shards=tmp_path / "shards", runtime=RUNTIME)
    assert "true quality" not in (tmp_path / "out" / "report.html").read_text()
    group = Index.load(tmp_path / "shards").read(0)
    (scored,) = scored_groups([group], [{"model": [1.0, 0.0]}])
    assert list(scored.pairs) == ["annotators"] and "1 of 1 queries say a `quality`" in caplog.text


def test_thirty_responses_have_thirty_names():
    names = [response_letter(place) for place in range(703)]
    assert len(set(names)) == 703 and (names[0], names[25], names[26], names[702]) == ("A", "Z", "AA", "AAA")


@pytest.mark.parametrize(
    "row", ['{"key": "a", "quality": "high"}', '{"quality": 1}', "[]", '{"key": "a"', '{"key": 3}']
)
def test_a_line_that_is_no_answer_is_named(artefacts, tmp_path, row):
    shutil.copytree(artefacts["before"], tmp_path / "before")
    with (tmp_path / "before" / "samples.jsonl").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=r"samples\.jsonl:\d+"):
        read_answers(read_stage("before", tmp_path / "before"))


def test_the_numbers_are_those_of_the_inputs(artefacts, whole):
    _, summary, written = whole
    assert summary == written
    score = json.loads((artefacts["score"] / "metrics.json").read_text())["heldout"]["accuracy"]
    assert summary["reward_acc_annotators"] == score["annotators"]["reward model"]["acc"]["mean"]
    before, after = (read_answers(read_stage(name, artefacts[name])) for name in ("before", "after"))
    gain = np.mean([after[key][0]["quality"] - before[key][0]["quality"] for key in after])
    assert summary["quality_gain"] == pytest.approx(gain)
    assert summary["quality_gain_low"] <= gain <= summary["quality_gain_high"]
    assert 0.1 <= summary["beta_mean"] <= 0.15
    assert summary["stage_seconds"] == pytest.approx(6.2 + 61 + 96 + 48.3 + 83 + 31 + 31, abs=0.1)


def test_with_nothing_at_all_every_section_says_what_to_run(tmp_path):
    assert run(tmp_path, runtime=RUNTIME) == {}
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="missing"') == 8 and "python run.py stage=score" in page
    assert not Outline(page).wrong


def draw_nothing(monkeypatch):
    """What is laid out is the point, not what is drawn."""
    for name in ("histogram", "bars", "intervals", "training_curves", "beta_of_margin", "drift"):
        monkeypatch.setattr(plots, name, lambda *args, **kwargs: "")


@pytest.mark.parametrize("absent", ["shards", "score", "before", "after", "mmdpo", "objective"])
def test_one_absent_input_is_no_crash(artefacts, tmp_path, absent, monkeypatch):
    draw_nothing(monkeypatch)
    inputs = {**artefacts, "objective": MMDPO()}
    inputs[absent] = tmp_path / "nowhere" if absent != "objective" else None
    run(tmp_path / "out", **inputs, num_samples=2, runtime=RUNTIME)
    assert not Outline((tmp_path / "out" / "report.html").read_text()).wrong


def test_shards_at_an_address_are_shown_like_local_ones(artefacts, tmp_path, monkeypatch):
    monkeypatch.setenv(remote.FOLDER_VARIABLE, str(tmp_path / "cache"))
    draw_nothing(monkeypatch)
    inputs = {**artefacts, "shards": artefacts["shards"].as_uri(), "objective": MMDPO()}
    summary = run(tmp_path / "out", **inputs, num_samples=2, runtime=RUNTIME)
    outline = Outline((tmp_path / "out" / "report.html").read_text())
    assert outline.tags.count("article") >= 2 and any(
        address.startswith("data:image/") for address in outline.addresses
    )
    assert 0.1 <= summary["beta_mean"] <= 0.15, "margins of the pairs"


def test_an_objective_without_margins_has_one_beta():
    assert pair_betas([-1.0, 0.0, 3.0], DPO(beta=0.2)).tolist() == pytest.approx([0.2, 0.2, 0.2])


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20))
def test_betas_are_those_of_the_formula(margins):
    """beta (1 + w (1 - exp(-k delta))) for delta > 0, else beta."""
    expected = 0.1 * (1 + 0.5 * (1 - np.exp(-0.5 * np.clip(margins, 0, None))))
    np.testing.assert_allclose(pair_betas(margins, MMDPO(beta=0.1, w=0.5, k=0.5)), expected, rtol=1e-5)


def test_answers_are_matched_by_key():
    before = {"a": [{"quality": 0.0}], "b": [{"quality": 0.5}], "c": [{"quality": None}]}
    after = {"b": [{"quality": 1.0, "category": "long"}], "c": [{"quality": 1.0}], "d": [{"quality": 1.0}]}
    assert paired_answers(before, after, "quality") == [("b", "long", 0.5, 1.0)]
    before["b"] += [{"quality": 1.0}, {"quality": None}, {"quality": 0.9}]
    assert paired_answers(before, after, "quality") == [("b", "long", pytest.approx(0.8), 1.0)], "a query's mean"


def test_the_best_of_a_querys_answers_is_the_one_with_the_highest_reward():
    rows = {"a": [(0.0, 1.0), (2.0, 0.5)], "b": [(3.0, 0.0), (1.0, 1.0)], "c": [(7.0, 1.0)]}
    before = {key: [{"reward": r, "quality": q} for r, q in own] for key, own in rows.items()}
    best = best_of_before(before)
    assert best is not None and (best.n, best.queries, best.reward.mean) == (2, 2, 2.5)
    assert best.quality is not None and best.quality.mean == 0.25, "of those that have two answers"
    assert best_of_before({"c": before["c"]}) is None and best_of_before({"a": [{"reward": None}] * 2}) is None


def test_the_best_of_all_answers_is_asked_for_no_smaller_number(monkeypatch):
    """Sixteen answers are five points of a curve, of which the report shows the last, beside one answer."""
    asked: list[int] = []
    chosen = best_answers.choice_probabilities
    monkeypatch.setattr(best_answers, "choice_probabilities", lambda *a: (asked.append(a[2]), chosen(*a))[1])
    best = best_of_before({key: [{"reward": float(n)} for n in range(16)] for key in "ab"})
    assert best is not None and (best.n, best.reward.mean) == (16, 15.0) and sorted(asked) == [1, 1, 16, 16]


def test_samples_take_the_categories_in_turn(artefacts):
    index = Index.load(artefacts["shards"])
    rows = choose_rows(index, [], 10, seed=3)
    categories = [index.entries[row].category for row in rows]
    assert len(set(rows)) == 10 and all(categories.count(name) == 2 for name in report_data.CATEGORIES)
    assert rows == choose_rows(index, [], 10, seed=3) != choose_rows(index, [], 10, seed=4)
    assert len(choose_rows(index, ["long-0000", "video-0004"], 10, seed=0)) == 2


def test_a_path_inside_an_artefact_finds_its_record(artefacts):
    (artefacts["mmdpo"] / "model").mkdir(exist_ok=True)
    stage = read_stage("mmdpo", artefacts["mmdpo"] / "model")
    assert stage is not None and stage.seconds == 83.0 and "train/loss" in stage.curves
    assert read_stage("mmdpo", None) is None and read_stage("mmdpo", "llava-hf/some-hub-id") is None


@pytest.mark.parametrize(
    "values", [[], [0.1] * 50, [np.nan, np.inf, 1.0], [16777216.0, 16777218.0], [-1e30, 1e30], [0.0, 1e-12]]
)
def test_histograms_take_any_numbers(values):
    assert plots.histogram(np.array(values), label="anything", mark=0.0).startswith("<svg")
