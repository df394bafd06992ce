"""The stage `curate`: from records on the disk to shards, with what fell, shortfalls, and inputs that cannot work."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow.parquet as pq
import pytest
from stand_ins.sample_groups import write_records
from stand_ins.small_encoder import drawing

from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation import sample_shards
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.ranges import declared
from mmrlhf.records.query_sets import import_queries
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import ShardSink
from mmrlhf.stages import curate, query_features
from mmrlhf.summaries.curations import CurateSummary, TypeShare

# a random encoder finds all pictures alike, so hashes decide
BY_HASH = {"cosine": 1.0, "cosine_with_hash": 0.1, "bits": 6}


def write_pool(root: Path, numbers: range, **picture: int) -> Path:
    """A picture each, one in four without; categories long, short and mcq."""
    rows = []
    for number in numbers:
        row: dict[str, Any] = {"id": number, "prompt": f"what is in number {number} ?"}
        row["category"] = ("long", "short", "short", "mcq")[number % 4]
        if number % 4:
            row["image"] = f"{number}.jpg"
            root.mkdir(parents=True, exist_ok=True)
            (root / f"{number}.jpg").write_bytes(drawing(number, **picture))
        rows.append(row)
    write_records(root, "s.jsonl", rows)
    return root


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, small_clip: Path) -> Path:
    """40 queries, eight of them again in a second set with worse pictures; a benchmark with two of the pictures."""
    root = tmp_path_factory.mktemp("encoded")
    sets = {"one": write_pool(root / "one", range(40)), "two": write_pool(root / "two", range(8), quality=50, side=48)}
    bench = write_pool(root / "bench", range(38, 40), quality=70)
    query_features.run(
        root / "out", sets=sets, against={"bench": bench}, encoder=small_clip, importer=import_queries,
        runtime=Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False),
    )  # fmt: skip
    return root / "out"


def curated(out: Path, encoded: Path, runtime: Runtime, **more: Any) -> CurateSummary:
    settings = {"size": 12, "clusters": 4, **BY_HASH, **more}
    return CurateSummary.from_json(curate.run(out, features=encoded, **settings, runtime=runtime), where="")


def number_of(question: str) -> int:
    return int(question.split()[-2])


def pictures(question: str) -> list[bytes]:
    return [drawing(number_of(question))] if number_of(question) % 4 else []


def test_from_sets_to_shards(tmp_path: Path, encoded: Path, runtime: Runtime) -> None:
    summary = curated(tmp_path, encoded, runtime)
    # six of the eight have pictures; the texts of the other two are word for word the same
    assert summary.pool == 48 and summary.fell == {"duplicate": 8, "benchmark": 2} and summary.close_to == {"bench": 2}
    assert summary.groups == summary.wanted == 12 and not summary.lost
    index = Index.load(tmp_path / "shards")
    groups = list(index)
    assert len(groups) == 12 and all(group.responses == () for group in groups)
    assert {group.meta["curation"]["set"] for group in groups} == {"one"}
    table = pq.read_table(tmp_path / "decisions.parquet").to_pylist()
    fates = Counter(row["fate"] for row in table)
    assert fates == {"sampled": 12, "duplicate": 8, "benchmark": 2, "not chosen": 26, "against": 2}
    assert {row["key"] for row in table if row["fate"] == "sampled"} == {group.key for group in groups}
    because = {row["key"]: row["because"] for row in table if row["fate"] == "duplicate"}
    texts = {row["key"]: row["key"].split("--")[1].split("-")[0] for row in table}
    assert len(because) == 8 and all(texts[key] == texts[why] for key, why in because.items())
    for group in groups:
        assert [media.data[0] for media in group.media] == pictures(group.prompt.question)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "12 of 48 queries" in page and "too close to bench" in page and page.count("<svg") == 2
    assert page.count("data:image/jpeg") > 20 and "the same picture, cosine" in page and "both kept" in page
    assert 1 <= summary.effective_clusters <= 4 and summary.cosine_low <= summary.cosine_mean <= 1.001


def test_types_in_shares_and_a_shortfall_that_nothing_fills(
    tmp_path: Path, encoded: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    summary = curated(tmp_path, encoded, runtime, size=30, mix={"long": 1, "short": 1}, fixed={"mcq": 0.5})
    assert summary.types["mcq"] == TypeShare(pool=12, kept=9, wanted=15, sampled=9)
    assert summary.types["long"].sampled == summary.types["long"].wanted in (7, 8)
    assert summary.groups == 24 and "mcq: 9 of 15" in caplog.text
    index = Index.load(tmp_path / "shards")
    assert Counter(group.category for group in index)["mcq"] == 9


def test_arms_choose_differently_and_each_the_same_again(tmp_path: Path, encoded: Path, runtime: Runtime) -> None:
    digests = {arm: curated(tmp_path / arm, encoded, runtime, arm=arm).digest for arm in ("spread", "paper", "random")}
    assert len(set(digests.values())) == 3
    assert curated(tmp_path / "again", encoded, runtime, arm="spread").digest == digests["spread"]
    everything = curated(tmp_path / "all", encoded, runtime, duplicates=False)
    assert not everything.fell and everything.types["any type"].kept == 48


def test_a_type_that_does_not_exist(tmp_path: Path, encoded: Path, runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="no query is of this type") as caught:
        curated(tmp_path, encoded, runtime, mix={"log": 1})
    assert "short (" in str(caught.value) and caught.value.argument == "mix"


def test_a_type_of_which_nothing_is_left(tmp_path: Path, small_clip: Path, runtime: Runtime) -> None:
    """Both pictures of the type are a benchmark's; queries of other types are left, and not wanted."""
    pool, bench = write_pool(tmp_path / "pool", range(8)), write_pool(tmp_path / "bench", range(3, 8, 4), quality=70)
    query_features.run(
        tmp_path / "f", sets={"pool": pool}, against={"bench": bench}, encoder=small_clip, importer=import_queries,
        runtime=runtime,
    )  # fmt: skip
    with pytest.raises(DataError, match="no query is left to choose from") as caught:
        curated(tmp_path / "out", tmp_path / "f", runtime, size=4, mix={"mcq": 1})
    assert caught.value.given == "2 x benchmark"
    assert curated(tmp_path / "out", tmp_path / "f", runtime, size=4, mix={"mcq": 1, "long": 1}).groups == 2


def test_fewer_queries_than_are_asked_for(
    tmp_path: Path, encoded: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    summary = curated(tmp_path, encoded, runtime, size=500)
    assert summary.wanted == 500 and summary.groups == 38 and "38 of 500" in caplog.text


def test_a_picture_that_has_changed_is_lost_and_many_end_the_run(
    tmp_path: Path, small_clip: Path, runtime: Runtime
) -> None:
    root = write_pool(tmp_path / "one", range(8))
    query_features.run(tmp_path / "f", sets={"one": root}, encoder=small_clip, importer=import_queries, runtime=runtime)
    (root / "1.jpg").write_bytes(drawing(77))
    summary = curated(tmp_path / "out", tmp_path / "f", runtime, size=8)
    assert summary.groups == 7 and summary.lost == {sample_shards.CHANGED: 1}
    (root / "2.jpg").unlink()
    with pytest.raises(DataError, match="can no longer be read") as caught:
        curated(tmp_path / "other", tmp_path / "f", runtime, size=8)
    assert "s.jsonl:2" in str(caught.value) and "s.jsonl:3" in str(caught.value)


def test_a_full_disk_in_the_middle_loses_nothing(
    tmp_path: Path, encoded: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = curated(tmp_path / "whole", encoded, runtime, max_groups_per_shard=4)
    add, calls = ShardSink.add, []

    def full(self: ShardSink, group: Any) -> None:
        calls.append(group.key)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        add(self, group)

    monkeypatch.setattr(ShardSink, "add", full)
    with pytest.raises(OSError, match="No space left"):
        curated(tmp_path / "out", encoded, runtime, max_groups_per_shard=4)
    assert curated(tmp_path / "out", encoded, runtime, max_groups_per_shard=4).digest == whole.digest
    assert len(calls) == 7 + 8  # the first shard's four are not written again


def test_what_the_stages_declare_can_be_read() -> None:
    """The command checks every argument by its annotation before anything runs."""
    assert declared(query_features.run)["of"] and declared(curate.run)["arm"]


def test_a_folder_that_holds_no_features(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(DataError, match="holds no queries"):
        curated(tmp_path / "out", tmp_path, runtime)
