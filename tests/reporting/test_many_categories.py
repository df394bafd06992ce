"""300 categories: the page stays small, folds, and loses nothing."""

from __future__ import annotations

import csv
import json

import lightning as L
import numpy as np
import pytest
from stand_ins import report_data

from benchmarks.report import make_answers, make_groups, make_rewards, write_evaluation
from mmrlhf.chain.runtime import Runtime
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.reporting import plots
from mmrlhf.reporting.accuracy import GENERATED, ranking_summary
from mmrlhf.reporting.categories import MOST_SHOWN, common, gathered, largest_first
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import report

CATEGORIES = 300


def make_page(root, queries: int, categories: int):
    groups = make_groups(queries, categories)
    write_shards(groups, root / "shards")
    index = Index.load(root / "shards")
    rewards = make_rewards(root / "score" / "rewards", groups)
    found = ranking_summary(index, np.arange(len(index)), {GENERATED: rewards})
    report_data.scored(found).write(root / "score")
    for name, gain in (("before", 0.0), ("after", 0.1)):
        write_evaluation(root / name, make_answers(groups, gain), is_reference=gain == 0)
    folders = {name: root / name for name in ("shards", "score", "before", "after")}
    report.run(root / "out", **folders, objective=MMDPO(), runtime=Runtime(trainer=L.Trainer, progress=False))
    return (root / "out" / report.PAGE).read_text(), root / "out"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "to_svg", lambda figure, text, real=plots.to_svg: drawn.append(text) or real(figure, text))
        html, out = make_page(tmp_path_factory.mktemp("many"), 600, CATEGORIES)
    return html, out, drawn


@pytest.mark.slow
def test_the_page_is_small_and_folds(page):
    html, _, drawn = page
    assert len(html) < 2e6
    assert html.count(f"and {CATEGORIES - MOST_SHOWN} more") == 4  # policy, two judges, verdicts
    assert max(map(len, drawn)) < 3000, "no picture holds all categories"


@pytest.mark.slow
def test_nothing_is_lost(page):
    html, out, _ = page
    with (out / report.CATEGORIES).open() as file:
        rows = list(csv.DictReader(file))
    names = {f"category {number:03d}" for number in range(CATEGORIES)}
    for table in ("policy", "reward, by annotators", "reward, by truth", "verdicts"):
        assert {row["category"] for row in rows if row["table"] == table} == names
    assert all(f"<td>{name}</td>" in html for name in names)
    known = json.loads((out.parent / "score" / "metrics.json").read_text())["heldout"]["accuracy"]["annotators"]
    expected = known[GENERATED]["categories"]["category 007"]["acc"]
    (row,) = (
        row for row in rows
        if (row["table"], row["category"], row["measure"]) == ("reward, by annotators", "category 007", "acc")
    )  # fmt: skip
    assert float(row["value"]) == pytest.approx(expected["mean"])


@pytest.mark.slow
def test_a_category_of_one_query_shows_no_interval(page):
    html, _, _ = page
    assert html.count("no interval") > 100


def test_which_are_common():
    assert common({"b": 1, "a": 1}) == ["a", "b"]
    many = {f"{number:02d}": number for number in range(40)}
    assert common(many) == [f"{number:02d}" for number in range(40 - MOST_SHOWN, 40)]
    rows = [{"name": name, "size": size} for name, size in many.items()]
    assert largest_first(rows, "size")[0]["name"] == "39" and largest_first(rows[:3], "size") == rows[:3]
    folded = gathered({name: [size, 1] for name, size in many.items()})
    assert [sum(column) for column in zip(*folded.values(), strict=True)] == [sum(many.values()), 40]
    assert len(folded) == MOST_SHOWN + 1 and f"{40 - MOST_SHOWN} rarer ones" in folded
