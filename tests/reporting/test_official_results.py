"""The published scoring scripts find in our files what we report: each is followed here, with loops."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrlhf.chain.runtime import Runtime
from mmrlhf.shards.sidecar import SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import rewardbench
from mmrlhf.types import PreferenceGroup, Response

Found = dict[str, float]
CATEGORIES = {
    "MM-RLHF-RewardBench": ["mcq", "long", "short", "safety", "video"],
    "VL-RewardBench": ["general", "hallucination", "reasoning"],
    "Multimodal RewardBench": ["vqa", "safety/bias", "safety/toxicity", "reasoning/math", "reasoning/coding"],
}
# by what the script of Multimodal RewardBench tells the halves of safety and reasoning apart
PREFIX = {
    "safety/bias": "PAIRS",
    "safety/toxicity": "hateful",
    "reasoning/math": "mathvista",
    "reasoning/coding": "EMMA",
}


def benchmark(folder: Path, source: str, runtime: Runtime, *, num_groups: int = 60) -> tuple[dict[str, Any], Path]:
    """A set of that source, with rewards of few levels, so that some tie; returns the stage's summary and folder."""
    draw, groups = np.random.default_rng(3), []
    for number in range(num_groups):
        category = CATEGORIES[source][number % len(CATEGORIES[source])]
        texts = [f"answer {number} {place}" for place in range(2 if source != "MM-RLHF-RewardBench" else 4)]
        responses = tuple(Response(text, rank=place + 1) for place, text in enumerate(texts))
        key = f"{PREFIX.get(category, 'id')}_{number}"
        groups.append(PreferenceGroup(key, "what ?", responses, category=category, source=source))
    write_shards(groups, folder / "shards")
    with SideCarWriter(folder / "rewards", columns=("reward", "critique"), fingerprint={}) as writer:
        for group in groups:
            for response in group.responses:
                row = {"reward": float(draw.integers(4) - (response.rank or 0)), "critique": "so so"}
                writer.add(group.key, response.hash, row)
    given = {"shards": folder / "shards", "rewards": folder / "rewards", "runtime": runtime}
    return rewardbench.run(folder / "out", **given), folder / "out"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mm_rlhf_script(rows: list[dict[str, Any]]) -> tuple[Found, float]:
    """ACC by the folder in the path and over all, and ACC+ by id."""
    hits, whole = defaultdict(list), defaultdict(list)
    for row in rows:
        right = row["rewards"][0] > row["rewards"][1]
        name = next(part for part in ("mcq", "long", "short", "safety", "video") if part in row["image"])
        for key in (name, "all"):
            hits[key].append(right)
        whole[row["id"]].append(right)
    return {name: sum(own) / len(own) for name, own in hits.items()}, sum(map(all, whole.values())) / len(whole)


def vl_script(rows: list[dict[str, Any]]) -> Found:
    """The judgement's sentence says which answer won, and `ranking` which should have."""
    group = {"vlfeedback": "general", "povid": "hallucination", "reasoning_tasks": "reasoning"}
    hits = defaultdict(list)
    for row in rows:
        worse = row["ranking"].index(1 if row["meta"]["random_number"] == 0 else 0) + 1
        found = re.search(r"Overall Judgment.*Answer\s*(\d+)\s*is\s*better", row["meta"]["filter_choice"])
        assert found is not None and (row["meta"]["flag_status"] == "agree") == (int(found[1]) != worse)
        for key in (group[row["image_path"].split("/")[1]], "all"):
            hits[key].append(int(found[1]) != worse)
    return {name: sum(own) / len(own) for name, own in hits.items()}


def multimodal_script(rows: list[dict[str, Any]]) -> Found:
    """Verdict against label; halves of safety and reasoning by what the id begins with."""
    hits = defaultdict(list)
    for row in rows:
        right = ("A" if "[[A]]" in row["output"] else "B") == row["Label"]
        name, start = row["Meta"]["Category"], row["ID"].lower()
        if name == "safety":
            name = "safety/bias" if start.startswith("pairs") else "safety/toxicity"
        if name == "reasoning":
            name = "reasoning/math" if start.startswith("math") else "reasoning/coding"
        for key in (name, "all"):
            hits[key].append(right)
    return {name: sum(own) / len(own) for name, own in hits.items()}


@pytest.mark.parametrize(
    ("source", "file", "script"),
    [
        ("MM-RLHF-RewardBench", "mm_reward_bench_result.jsonl", lambda rows: mm_rlhf_script(rows)[0]),
        ("VL-RewardBench", "vl_rewardbench_result.jsonl", vl_script),
        ("Multimodal RewardBench", "multimodal_rewardbench_result.jsonl", multimodal_script),
    ],
)
def test_the_script_finds_what_we_report(tmp_path, runtime, source, file, script):
    summary, out = benchmark(tmp_path, source, runtime)
    rows, report = lines(out / file), summary["accuracy"]["annotators"]["reward model"]
    found = script(rows)
    assert found.pop("all") == report["acc"]["mean"] and report["num_ties"] > 3
    assert found == {name: part["acc"]["mean"] for name, part in report["categories"].items()}
    assert summary["macro"]["reward model"] == pytest.approx(sum(found.values()) / len(found))
    assert [row["position"] for row in rows] == list(range(report["num_pairs"]))
    assert [path.name for path in out.glob("*_result.jsonl")] == [file]


def test_whole_queries_and_critiques_of_mm_rlhf(tmp_path, runtime):
    summary, out = benchmark(tmp_path, "MM-RLHF-RewardBench", runtime)
    rows = lines(out / "mm_reward_bench_result.jsonl")
    assert mm_rlhf_script(rows)[1] == summary["accuracy"]["annotators"]["reward model"]["acc_plus"]["mean"]
    assert all(row["critic"] == ["so so", "so so"] for row in rows)


def test_the_better_answer_stands_on_both_sides(tmp_path, runtime):
    _, out = benchmark(tmp_path / "a", "VL-RewardBench", runtime)
    rows = lines(out / "vl_rewardbench_result.jsonl")
    assert [row["ranking"] for row in rows[:2]] == [[0, 1], [1, 0]]
    assert all(row["response"][row["ranking"].index(0)].endswith(" 0") for row in rows)
    _, out = benchmark(tmp_path / "b", "Multimodal RewardBench", runtime)
    assert {row["Label"] for row in lines(out / "multimodal_rewardbench_result.jsonl")} == {"A", "B"}


def test_other_data_have_no_such_file_and_the_table_says_how_sure(tmp_path, small_shards, runtime):
    summary, out = benchmark(tmp_path, "VL-RewardBench", runtime)
    heading, _, first, second = (out / "rewardbench.md").read_text().splitlines()[:4]
    names = [cell.strip() for cell in heading.strip("|").split("|")]
    cells = dict(zip(names, (cell.strip() for cell in first.strip("|").split("|")), strict=True))
    calibration = summary["judge"]["calibration"]
    assert cells["NLL, nats"].startswith(f"{calibration['nll']['mean']:.3f} [")
    assert cells["Brier"].startswith(f"{calibration['brier']['mean']:.3f} [")
    assert cells["macro ACC"] == f"{summary['macro']['reward model']:.3f}" and "random" in second
    rewardbench.run(tmp_path / "own", shards=small_shards, runtime=runtime)
    assert not list((tmp_path / "own").glob("*_result.jsonl"))
