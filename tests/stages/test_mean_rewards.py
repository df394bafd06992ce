"""The mean of several tables of rewards: its value in both scalings, whose queries it lacks, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.stages import mean_rewards
from mmrlhf.summaries.scores import MeanRewardsSummary
from mmrlhf.types import PreferenceGroup

HOLDOUT = 0.4
Rule = Callable[[str], float]


def length(text: str) -> float:
    return float(len(text))


def words(text: str) -> float:
    return 100.0 - 30.0 * text.count("red") + 7.0 * text.count(" ")


def write_table(folder: Path, groups: list[PreferenceGroup], rule: Rule, digest: str | None) -> Path:
    fingerprint = {"made_by": "test"} | ({"shards": digest} if digest else {})
    with SideCarWriter(folder, columns=["reward"], fingerprint=fingerprint) as writer:
        for group in groups:
            for response in group.responses:
                writer.add(group.key, response.hash, {"reward": rule(response.text)})
    return folder


@pytest.fixture
def tables(tmp_path: Path, small_groups: list[PreferenceGroup], small_shards: Path) -> dict[str, Path]:
    digest = Index.load(small_shards).digest
    rules = {"a": length, "b": words}
    return {name: write_table(tmp_path / name, small_groups, rule, digest) for name, rule in rules.items()}


def rewards(folder: Path, group: PreferenceGroup) -> list[float]:
    table = SideCar.load(folder / "rewards")
    return table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()


def test_raw_is_the_plain_mean(
    tmp_path: Path, small_groups: list[PreferenceGroup], small_shards: Path, tables: dict, runtime: Runtime
) -> None:
    found = mean_rewards.run(tmp_path / "out", shards=small_shards, tables=tables, holdout=HOLDOUT, runtime=runtime)
    for group in small_groups:
        expected = [(length(each.text) + words(each.text)) / 2 for each in group.responses]
        assert rewards(tmp_path / "out", group) == pytest.approx(expected, rel=1e-6)
    assert found["lacking"] == {"a": 0, "b": 0} and found["queries"] == len(small_groups)
    assert {"mean of rewards", "a alone", "b alone"} <= set(found["heldout"]["accuracy"]["annotators"])
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert MeanRewardsSummary.from_json(content, where="metrics.json").to_json() == content


def test_standardised_tables_weigh_the_same(
    tmp_path: Path, small_groups: list[PreferenceGroup], small_shards: Path, tables: dict, runtime: Runtime
) -> None:
    """Mean and deviation are over responses of training queries alone; a table's own unit changes nothing."""
    index, out = Index.load(small_shards), tmp_path / "out"
    keys = {index.entries[int(row)].key for row in index.split("train", HOLDOUT)}
    asked = {"shards": small_shards, "scaling": "standardise", "holdout": HOLDOUT, "runtime": runtime}
    found = mean_rewards.run(out, tables=tables, **asked)
    texts = [response.text for group in small_groups if group.key in keys for response in group.responses]
    moments = {rule: (np.mean([rule(t) for t in texts]), np.std([rule(t) for t in texts])) for rule in (length, words)}
    assert found["scales"]["b"] == {
        "mean": pytest.approx(moments[words][0]), "deviation": pytest.approx(moments[words][1])
    }  # fmt: skip
    for group in small_groups:
        expected = [
            sum((rule(each.text) - mean) / deviation for rule, (mean, deviation) in moments.items()) / 2
            for each in group.responses
        ]
        assert rewards(out, group) == pytest.approx(expected, abs=1e-5)
    stretched = write_table(tmp_path / "s", small_groups, lambda t: 50 * length(t) - 3, index.digest)
    mean_rewards.run(tmp_path / "again", tables={**tables, "a": stretched}, **asked)
    assert rewards(tmp_path / "again", small_groups[0]) == pytest.approx(rewards(out, small_groups[0]), abs=1e-4)


def test_what_a_table_lacks_is_left_out_and_counted(
    tmp_path: Path, small_groups: list[PreferenceGroup], small_shards: Path, tables: dict, runtime: Runtime
) -> None:
    digest = Index.load(small_shards).digest
    tables["b"] = write_table(tmp_path / "fewer", small_groups[2:], words, digest)
    tables["c"] = write_table(tmp_path / "one", small_groups[1:], length, digest)
    found = mean_rewards.run(tmp_path / "out", shards=small_shards, tables=tables, holdout=HOLDOUT, runtime=runtime)
    assert found["lacking"] == {"a": 0, "b": 2, "c": 1} and found["queries"] == len(small_groups) - 2
    table = SideCar.load(tmp_path / "out" / "rewards")
    assert set(table.left_out) == {group.key for group in small_groups[:2]}
    assert all(name in table.left_out[small_groups[0].key] for name in ("'b'", "'c'"))
    assert "'c'" not in table.left_out[small_groups[1].key]


def test_tables_of_other_shards_are_refused(
    tmp_path: Path, small_groups: list[PreferenceGroup], small_shards: Path, tables: dict, runtime: Runtime
) -> None:
    tables["b"] = write_table(tmp_path / "other", small_groups, words, "0123")
    with pytest.raises(DataError, match="rewards 'b' was made with another shards"):
        mean_rewards.run(tmp_path / "out", shards=small_shards, tables=tables, runtime=runtime)


def test_what_has_no_mean_is_refused(
    tmp_path: Path, small_groups: list[PreferenceGroup], small_shards: Path, tables: dict, runtime: Runtime
) -> None:
    asked = {"shards": small_shards, "holdout": HOLDOUT, "runtime": runtime}
    with pytest.raises(ConfigError, match="two reward models or more") as missing:
        mean_rewards.run(tmp_path / "out", tables={"a": tables["a"]}, **asked)
    assert missing.value.argument == "tables"
    digest = Index.load(small_shards).digest
    flat = write_table(tmp_path / "flat", small_groups, lambda text: 1.0, digest)
    with pytest.raises(DataError, match="all alike") as alike:
        mean_rewards.run(tmp_path / "out", tables={**tables, "b": flat}, scaling="standardise", **asked)
    assert alike.value.argument == "tables.b"
    empty = write_table(tmp_path / "empty", small_groups[:0], words, digest)
    with pytest.raises(DataError, match="no training query"):
        mean_rewards.run(tmp_path / "out", tables={**tables, "b": empty}, **asked)


def test_a_folder_that_is_no_table_is_found_before_anything_is_built(tmp_path: Path, tables: dict[str, Path]) -> None:
    """The artefact in place of the table inside it; what a stage makes is not there yet."""
    (tmp_path / "artefact").mkdir()
    tables["a"].rename(tmp_path / "artefact" / "rewards")
    given = {"own": "stage:score/rewards", "b": tables["b"], "other": tmp_path / "artefact"}
    with pytest.raises(DataError) as caught:
        mean_rewards.check_settings({"tables": given})
    assert caught.value.argument == "tables.other"
    assert str(tmp_path / "artefact" / "rewards") in str(caught.value)
    mean_rewards.check_settings({"tables": {**given, "other": tmp_path / "artefact" / "rewards"}})
    with pytest.raises(DataError, match="no side-car table here"):
        mean_rewards.check_settings({"tables": {**given, "other": tmp_path / "nothing"}})
