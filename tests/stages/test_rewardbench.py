"""Stage `rewardbench`: the known baselines come out of the real benchmark; a reward model stands beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.records.members import safe_key
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import pack, rewardbench
from mmrlhf.types import response_hash


@pytest.fixture
def benchmark(tmp_path: Path, shared_data: Path, runtime) -> Path:
    """The real benchmark's text; its pictures are not at hand."""
    importer = partial(import_released, file="mm_reward_bench.jsonl", media=False)
    pack.run(tmp_path / "packed", root=shared_data / "rewardbench", importer=importer, runtime=runtime)
    return next((tmp_path / "packed").rglob("manifest.json")).parent


def test_baselines_of_the_real_benchmark(tmp_path, benchmark, runtime, capsys):
    """170 pairs of 46 queries; longer wins: ACC .718, ACC+ .478 (PAPER.md); words of the critiques far above that."""
    summary = rewardbench.run(tmp_path / "out", shards=benchmark, runtime=runtime)
    table = summary["accuracy"]["annotators"]
    assert set(table) == {"random", "longer wins", "critique words"}
    longer = table["longer wins"]
    assert (longer["num_pairs"], longer["num_queries"]) == (170, 46)
    assert longer["acc"]["mean"] == pytest.approx(0.718, abs=5e-4)
    assert longer["acc_plus"]["mean"] == pytest.approx(0.478, abs=5e-4)
    assert longer["acc"]["low"] < 0.718 < longer["acc"]["high"]
    assert table["critique words"]["acc"]["mean"] == pytest.approx(0.859, abs=5e-4)
    written = (tmp_path / "out" / "rewardbench.md").read_text()
    assert "| longer wins | 0.718 [" in written and "safety" in written
    assert "longer wins" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["queries"] == 46


def test_a_reward_model_comes_first_and_its_scores_can_be_used_again(tmp_path, small_shards, critic, runtime):
    asked = {"shards": small_shards, "critiques": CritiqueSettings(max_tokens=6), "runtime": runtime}
    ways = ["given", "no_critique", "no_picture"]
    first = rewardbench.run(tmp_path / "one", reward_model=critic, compare=ways, critique="short", **asked)
    table = first["accuracy"]["annotators"]
    assert list(table)[:4] == [
        "reward model",
        "reward model, critique given",
        "reward model, no critique",
        "reward model, no picture",
    ]
    scores = {name: [report["acc"]["mean"], report["acc_plus"]["mean"]] for name, report in table.items()}
    for scorer, ahead in first["difference"]["annotators"].items():
        gaps = [scores["reward model"][i] - scores[scorer][i] for i in (0, 1)]
        assert [ahead["acc"]["mean"], ahead["acc_plus"]["mean"]] == pytest.approx(gaps, abs=1e-12)
    given = {"rewards": tmp_path / "one" / "rewards", "other_rewards": tmp_path / "one" / "rewards_no_picture"}
    again = rewardbench.run(tmp_path / "two", **given, **asked)
    assert again["accuracy"]["annotators"]["reward model"] == table["reward model"]
    other = again["accuracy"]["annotators"]["other reward model"]
    assert other == table["reward model, no picture"]
    with pytest.raises(ConfigError, match="unknown way"):
        rewardbench.run(tmp_path / "three", compare=["given", "backwards"], **asked)


def test_a_text_only_score_does_not_see_the_picture(small_groups, critic, tmp_path, runtime):
    """The same queries with other pictures: the blind scores stay, the seeing ones do not."""
    seen: list[list[float]] = []
    blind: list[list[float]] = []
    for number in (0, 1):
        shards = tmp_path / f"shards-{number}"
        groups = [group for group in small_groups if group.media]
        other = {group.key: groups[(place + number) % len(groups)].media for place, group in enumerate(groups)}
        write_shards([replace(group, media=other[group.key]) for group in groups], shards)
        out = tmp_path / f"out-{number}"
        asked = {"critiques": CritiqueSettings(max_tokens=4), "compare": ["no_picture"], "runtime": runtime}
        rewardbench.run(out, shards=shards, reward_model=critic, **asked)
        for found, folder in ((seen, "rewards"), (blind, "rewards_no_picture")):
            table = SideCar.load(out / folder)
            hashes = [(group.key, [r.hash for r in group.responses]) for group in groups]
            found.append([v for key, names in hashes for v in table.lookup(key, names)["reward"].tolist()])
    assert blind[0] == pytest.approx(blind[1], abs=1e-5)
    assert seen[0] != pytest.approx(seen[1], abs=1e-3)


def test_given_critiques_of_another_kind_take_the_place_of_the_written_ones(small_groups, critic, tmp_path, runtime):
    """RewardBench's human reasons are short; a model that writes full critiques is given those."""
    shards = tmp_path / "shards"
    write_shards(small_groups, shards)
    asked = {"shards": shards, "reward_model": critic, "critiques": CritiqueSettings(max_tokens=4), "runtime": runtime}
    rewardbench.run(tmp_path / "out", compare=["given"], critique="short", **asked)
    table = SideCar.load(tmp_path / "out" / "rewards_given")
    judge = RewardModel.from_pretrained(critic, device="cpu")
    for group in small_groups[:3]:
        responses = tuple(replace(r, critiques={"full": r.critiques["short"]}) for r in group.responses)
        expected = judge.score_groups([replace(group, responses=responses)], critique_source="given")[0]
        found = table.lookup(group.key, [r.hash for r in group.responses])["reward"].tolist()
        assert found == pytest.approx([verdict.reward for verdict in expected], abs=1e-4)


def released_metric(rows: list[dict], rewards: list[tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """ACC and ACC+ as PAPER.md states them, with loops: a pair is right if the chosen one scores strictly higher, ACC+
    counts queries with every pair right, and a category is the folder of the media path.
    """
    found = {}
    folders = [(row.get("image") or row.get("video")).split("/")[0] for row in rows]
    for name in ("all", *sorted(set(folders))):
        right, queries = [], {}
        for row, folder, (chosen, rejected) in zip(rows, folders, rewards, strict=True):
            if name in ("all", folder):
                right.append(chosen > rejected)
                queries.setdefault(row["id"], []).append(chosen > rejected)
        found[name] = sum(right) / len(right), sum(all(hits) for hits in queries.values()) / len(queries)
    return found


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_released_metric_to_the_last_digit(tmp_path, benchmark, shared_data, runtime, levels):
    """The same rewards, some of them tied, by the released definition on the released rows and by the stage."""
    lines = (shared_data / "rewardbench" / "mm_reward_bench.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rng, index = np.random.default_rng(levels), Index.load(benchmark)
    given: dict[tuple[str, str], float] = {}
    with SideCarWriter(tmp_path / "rewards", columns=("reward",), fingerprint={"made_by": "test"}) as writer:
        for number in range(len(index)):
            group = index.read(number)
            for response in group.responses:
                given[group.key, response.hash] = float(rng.integers(levels))
                writer.add(group.key, response.hash, {"reward": given[group.key, response.hash]})
    rewards = [
        (given[key, response_hash(row["chosen"])], given[key, response_hash(row["rejected"])])
        for row in rows
        for key in (safe_key(row["id"]),)
    ]
    expected = released_metric(rows, rewards)
    summary = rewardbench.run(tmp_path / "out", shards=benchmark, rewards=tmp_path / "rewards", runtime=runtime)
    found = summary["accuracy"]["annotators"]["reward model"]
    for name, numbers in expected.items():
        part = found if name == "all" else found["categories"][name]
        assert (part["acc"]["mean"], part["acc_plus"]["mean"]) == numbers, name
    assert levels > 3 or found["num_ties"] > 20


def test_a_benchmark_without_ranks_is_refused(tmp_path, small_groups, runtime):
    responses = tuple(replace(response, rank=None) for response in small_groups[1].responses)
    write_shards([replace(small_groups[1], responses=responses, meta={})], tmp_path / "shards")
    with pytest.raises(DataError, match="no ranked pair"):
        rewardbench.run(tmp_path / "out", shards=tmp_path / "shards", runtime=runtime)


def test_queries_that_a_given_table_left_out_count_against_the_budget(tmp_path, small_groups, small_shards, runtime):
    """One may be left out; keys of other data are no query of these."""
    keys = [group.key for group in small_groups if group.ranked_pairs()]
    for number, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        with SideCarWriter(folder, columns=("reward",), fingerprint={"made_by": "test"}) as writer:
            for group in small_groups:
                for place, response in enumerate(group.responses if group.key not in keys[:number] else ()):
                    writer.add(group.key, response.hash, {"reward": float(place)})
            writer.leave_out({**dict.fromkeys(keys[:number], "too dark"), "another": "of other data"})
    asked = {"shards": small_shards, "runtime": runtime}
    summary = rewardbench.run(tmp_path / "out", rewards=tmp_path / "one", **asked)
    assert summary["quarantined"]["queries"] == 1 and summary["queries"] == len(small_groups) - 1
    with pytest.raises(DataError, match=r"too many queries(?s:.)*2 of \d+ queries: 2 x too dark"):
        rewardbench.run(tmp_path / "out2", rewards=tmp_path / "two", **asked)
