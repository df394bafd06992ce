"""Stage `rewardbench`: the known baselines come out of the real benchmark; a reward model stands beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mmrlhf.data.importers.rewardbench import import_rewardbench
from mmrlhf.data.shards import write_shards
from mmrlhf.errors import DataError
from mmrlhf.stages import pack, rewardbench
from mmrlhf.stages.settings import CritiqueSettings


@pytest.fixture
def benchmark(tmp_path: Path, shared_data: Path, runtime) -> Path:
    """The real benchmark's text; its pictures are not at hand."""
    importer = partial(import_rewardbench, shared_data / "rewardbench", media=False)
    pack.run(tmp_path / "packed", importer=importer, runtime=runtime)
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
    first = rewardbench.run(tmp_path / "one", reward_model=critic, compare_given=True, **asked)
    table = first["accuracy"]["annotators"]
    assert list(table)[:2] == ["reward model", "reward model, critique given"]
    again = rewardbench.run(tmp_path / "two", rewards=tmp_path / "one" / "rewards", **asked)
    assert again["accuracy"]["annotators"]["reward model"] == table["reward model"]


def test_a_benchmark_without_ranks_is_refused(tmp_path, small_groups, runtime):
    responses = tuple(replace(response, rank=None) for response in small_groups[1].responses)
    write_shards([replace(small_groups[1], responses=responses, meta={})], tmp_path / "shards")
    with pytest.raises(DataError, match="no ranked pair"):
        rewardbench.run(tmp_path / "out", shards=tmp_path / "shards", runtime=runtime)
