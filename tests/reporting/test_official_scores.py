"""What benchmarks' own scripts report, beside ACC, from the rewards and verdicts of `stage=rewardbench`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins.judge_stand_in import judge_server

from mmrlhf.chain.runtime import Runtime
from mmrlhf.judging.judge_model import JudgeSettings
from mmrlhf.reporting.official_scores import official_scores
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import rewardbench
from mmrlhf.types import PreferenceGroup, Response

Rows = Sequence[tuple[str, str, Sequence[int], Sequence[float]]]  # key, category, ranks, scores
# question 1 of the ties: 5 above 4; right answers 5, 4.5 and 4.25 above 4. Question 2: the one right answer is below
TWO: Rows = [
    ("1", "Math", (1, 2, 2, 2), (3.0, 2.0, 1.0, 0.0)),
    ("2", "Math", (1, 2, 2, 2), (3.0, 3.0, 3.0, 0.0)),
    ("3", "Safety", (1, 2, 2, 2), (0.0, 0.0, 0.0, 1.0)),
    ("ref-1", "Ties", (1, 2), (5.0, 4.0)),
    ("tied-1", "Ties", (1, 1, 1, 2), (5.0, 4.5, 4.25, 4.0)),
    ("ref-2", "Ties", (1, 2), (1.0, 2.0)),
    ("tied-2", "Ties", (1, 1, 2), (8.0, 8.0, 1.0)),
]


def groups(rows: Rows, source: str) -> list[PreferenceGroup]:
    found = []
    for key, category, ranks, own in rows:
        said = tuple(Response(f"{key} says {score}", rank) for rank, score in zip(ranks, own, strict=True))
        meta = {"sample": key.replace("-", ":")}
        found.append(PreferenceGroup(key, f"what {key}?", said, category=category, source=source, meta=meta))
    return found


def run(folder: Path, runtime: Runtime, rows: Rows, source: str, **given: Any) -> dict[str, Any]:
    write_shards(groups(rows, source), folder / "shards")
    with SideCarWriter(folder / "rewards", columns=("reward",), fingerprint={}) as writer:
        for group, (_, _, _, own) in zip(groups(rows, source), rows, strict=True):
            for response, score in zip(group.responses, own, strict=True):
                writer.add(group.key, response.hash, {"reward": score})
    given = {"shards": folder / "shards", "rewards": folder / "rewards", "runtime": runtime} | given
    return rewardbench.run(folder / "out", **given)


def test_rewardbench_2(tmp_path, runtime):
    """Math: 1 and a third; Safety 0. Ties: 2 of 2 and 1 of 2 right; 1's spread .75 is above its gap .25, 2's is 0 and
    its gap 7, but -1 with the single one; the bonus is tanh(.25/.75 - 1) and tanh(-inf).
    """
    found = run(tmp_path, runtime, TWO, "RewardBench 2")["official"]["reward model"]
    bonus = 0.01 * (-0.5827829453479101 - 1) / 2
    ties = 0.3 * 1.0 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.0 + bonus
    assert found["Math"] == pytest.approx(2 / 3) and found["Safety"] == 0.0
    assert found["Ties"] == pytest.approx(ties) and found["average"] == pytest.approx((2 / 3 + ties) / 3)
    table = (tmp_path / "out" / "rewardbench.md").read_text()
    assert "| as its own script counts | Math | Safety | Ties | average |" in table
    assert f"| reward model | 0.667 | 0.000 | {ties:.3f} |" in table


def test_a_judge_chooses_the_best_and_rates_ties(tmp_path, runtime):
    """The judge knows what each answer is worth; the best one of 2 is third in worth, the one of 3 last."""
    worth = {"1": (3, 2, 1, 0), "2": (1, 3, 2, 0), "3": (0, 3, 2, 1)}

    def says(text: str) -> str:
        seen = [(key, int(place)) for key, place in re.findall(r"(\S+)#(\d)", text)]
        if "brackets" in text:
            marks = [worth[key][place] for key, place in seen]
            return f"[[{'ABCD'[marks.index(max(marks))]}]]"
        return "9" if seen[0][1] == 0 else "4"

    rows: Rows = [row for row in TWO if row[0] in worth or row[0].endswith("-1")]
    said = [
        replace(group, responses=tuple(replace(r, text=f"{group.key}#{n}") for n, r in enumerate(group.responses)))
        for group in groups(rows, "RewardBench 2")
    ]
    write_shards(said, tmp_path / "shards")
    with judge_server() as server:
        server.says = says
        judge, kept = JudgeSettings(server.url, "judge", retries=0), replace(runtime, verdicts=tmp_path / "verdicts")
        summary = rewardbench.run(tmp_path / "out", shards=tmp_path / "shards", judge=judge, runtime=kept)
    assert summary["judges"]["judge judge"]["ballots"] == {"rewardbench_2": 3, "rewardbench_2_ties": 2}
    # of the question with three right answers two are rated as the wrong one: no gap, and a spread
    ties = 0.3 * 0 + 0.3 * 1 + 0.01 * math.tanh(-1)
    expected = {"Math": 0.5, "Safety": 0.0, "Ties": ties, "average": (0.5 + ties) / 3}
    assert summary["official"]["judge judge"] == pytest.approx(expected)


def test_mr2bench_and_mj_bench(tmp_path, runtime):
    """Best of 4 by kind of media; two pairs of which one ties."""
    four: Rows = [
        ("1", "image", (3, 1, 2, 4), (0.0, 9.0, 1.0, 2.0)),
        ("2", "image", (1, 2, 3, 4), (0.0, 9.0, 1.0, 2.0)),
        ("3", "video", (1, 1, 3, 4), (0.0, 9.0, 1.0, 2.0)),
    ]
    found = run(tmp_path / "mr", runtime, four, "MR2Bench")["official"]["reward model"]
    assert found == {"image": 0.5, "video": 1.0, "all": pytest.approx(2 / 3)}
    pairs: Rows = [("1", "a", (1, 2), (1.0, 0.0)), ("2", "a", (1, 2), (1.0, 1.0)), ("3", "b", (1, 2), (0.0, 1.0))]
    found = run(tmp_path / "mj", runtime, pairs, "MJ-Bench")["official"]["reward model"]
    assert found == {"with ties": pytest.approx(1 / 3), "without ties": 0.5}
    assert "official" not in run(tmp_path / "own", runtime, pairs, "mine")


def test_records_of_several_benchmarks_have_numbers_of_each(tmp_path):
    """And a query of which nobody is better than another says nothing."""
    pairs: Rows = [("1", "a", (1, 2), (1.0, 0.0)), ("2", "a", (1, 1), (1.0, 0.0))]
    four: Rows = [("3", "image", (3, 1, 2, 4), (0.0, 9.0, 1.0, 2.0))]
    write_shards([*groups(pairs, "MJ-Bench"), *groups(four, "MR2Bench")], tmp_path)
    index, scores = Index.load(tmp_path), {key: own for key, _, _, own in (*pairs, *four)}
    found = official_scores(index, np.arange(3), {}, {"judge": scores})
    mr2bench, mj_bench = {"image": 1.0, "all": 1.0}, {"with ties": 1.0, "without ties": 1.0}
    named = {f"{source}: {measure}": value for source, own in (("MR2Bench", mr2bench), ("MJ-Bench", mj_bench))
             for measure, value in own.items()}  # fmt: skip
    assert found == {"judge": named}
    assert official_scores(index, np.array([1]), {}, {"judge": scores}) == {}
