"""The stage `pack`: everything that is left out is listed, and an interruption costs one shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from stand_ins.sample_groups import picture, write_pictures, write_records

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.draft import Draft, Drafts, Rejection
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.reporting.pack_table import pack_table
from mmrlhf.shards.index import Index
from mmrlhf.stages.pack import run
from mmrlhf.summaries.datasets import PackSummary

REWARDBENCH = partial(import_released, file="mm_reward_bench.jsonl")
QUIET = Runtime(trainer=L.Trainer, progress=False)


def record(number: int, **fields: Any) -> dict[str, Any]:
    answers = [{"text": text, "rank": rank} for text, rank in (("a", 1), ("b", 2), ("c", 2))]
    return {"id": f"q{number}", "image": f"long/{number}.jpg", "prompt": "<image>\np", "responses": answers, **fields}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Ten records; number 3 has no picture, number 6 a broken one."""
    root = write_records(tmp_path / "raw", "data.jsonl", [record(number) for number in range(10)])
    write_pictures(root, *(f"long/{number}.jpg" for number in range(10) if number != 3))
    (root / "long/6.jpg").write_bytes(picture()[:100])
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_log_names_where_the_report_ends_up(raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "pack" / "0123456789ab.building", root=raw, importer=import_released, runtime=QUIET)
    assert f"{tmp_path / 'pack' / '0123456789ab' / 'report.json'} lists them" in caplog.text
    assert ".building" not in caplog.text


def test_counts_and_report(raw: Path, tmp_path: Path) -> None:
    summary = run(tmp_path / "out", root=raw, importer=import_released, max_groups_per_shard=3, runtime=QUIET)
    assert (summary["groups"], summary["responses"], summary["pairs"], summary["ties"]) == (8, 24, 16, 8)
    assert summary["responses_per_group"] == {"3": 8} and summary["categories"] == {"long": 8}
    assert summary["placeholders_stripped"] == 0 and summary["shards"] == 3 and summary["rejected"] == 2
    assert summary["rejected_by_reason"] == {"media file is missing": 1, "image cannot be decoded": 1}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [item["id"] for item in report["rejections"]] == ["q3", "q6"]
    assert "data.jsonl:4" in report["rejections"][0]["where"] and "long/3.jpg" in report["rejections"][0]["where"]
    assert json.loads(json.dumps(summary)) == summary == report["summary"]
    table = pack_table(PackSummary(**{**summary, "ignored_fields": {"audio": 3}, "text_only_groups": 7}))
    shown = dict(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))
    assert shown["text only"].startswith("7 groups") and shown["placeholders"].startswith("0 stripped")
    assert shown["fields that nothing reads"] == "1" and shown["  audio"] == "in 3 records"
    index = Index.load(tmp_path / "out")
    assert [index.read(i).key for i in range(8)] == [f"q{n}" for n in range(10) if n not in (3, 6)]
    assert sorted(files(tmp_path / "out")) == sorted(
        ["report.json", "manifest.json", "index.parquet", *(f"shard-0000{n}.tar" for n in range(3))]
    )


def interrupted(root: Path, *, after: int) -> Iterator[Draft | Rejection]:
    for number, item in enumerate(import_released(root)):
        if number == after:
            raise KeyboardInterrupt
        yield item


@pytest.mark.parametrize("after", [0, 2, 5, 9])
def test_an_interruption_changes_nothing(raw: Path, tmp_path: Path, after: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, root=raw, importer=import_released, max_groups_per_shard=2, runtime=QUIET)
    with pytest.raises(KeyboardInterrupt):
        run(broken, root=raw, importer=partial(interrupted, after=after), max_groups_per_shard=2, runtime=QUIET)
    finished = {path: path.stat().st_mtime_ns for path in broken.glob("*.tar")}
    assert len(finished) == {0: 0, 2: 1, 5: 2, 9: 3}[after]
    run(broken, root=raw, importer=import_released, max_groups_per_shard=2, runtime=QUIET)
    assert files(whole) == files(broken)
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())


def test_changed_records_start_over(raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", root=raw, importer=partial(interrupted, after=5), max_groups_per_shard=2, runtime=QUIET)
    write_records(raw, "data.jsonl", [record(number) for number in (9, 8, 7)])
    run(tmp_path / "out", root=raw, importer=import_released, max_groups_per_shard=2, runtime=QUIET)
    assert "start" in caplog.text
    assert [entry.key for entry in Index.load(tmp_path / "out").entries] == ["q9", "q8", "q7"]


def test_contradictions_are_listed_and_kept(tmp_path: Path) -> None:
    pairs = [{"id": 1, "prompt": "p", "chosen": a, "rejected": b} for a, b in ("ab", "ba")]
    root = write_records(tmp_path / "raw", "dpo_pairs.jsonl", pairs)
    summary = run(tmp_path / "out", root=root, importer=import_released, runtime=QUIET)
    assert (summary["contradictions"], summary["pairs"], summary["groups_with_explicit_pairs"]) == (1, 2, 1)
    [listed] = json.loads((tmp_path / "out" / "report.json").read_text())["contradictions"]
    assert listed["id"] == "1" and listed["where"] == "dpo_pairs.jsonl:1"


def test_a_bad_line_stops_before_there_is_a_set(raw: Path, tmp_path: Path) -> None:
    """Rows are read once, so shards before it are finished; they are used again when it has been repaired."""
    write_records(raw, "data.jsonl", [record(0), record(1), "{"])
    with pytest.raises(DataError, match=r"data\.jsonl:3"):
        run(tmp_path / "out", root=raw, importer=import_released, max_groups_per_shard=1, runtime=QUIET)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(finished) == 2 and not (tmp_path / "out" / "manifest.json").exists()
    reject = partial(import_released, on_bad_line="reject")
    summary = run(tmp_path / "out", root=raw, importer=reject, max_groups_per_shard=1, runtime=QUIET)
    assert summary["groups"] == 2 and summary["rejected"] == 1
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())


def test_nothing_usable_is_an_error(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="46 x media file is missing"):
        run(tmp_path / "out", root=shared_data / "rewardbench", importer=REWARDBENCH, runtime=QUIET)
    text_only = partial(REWARDBENCH, media=False)
    summary = run(tmp_path / "out", root=shared_data / "rewardbench", importer=text_only, runtime=QUIET)
    assert (summary["groups"], summary["pairs"], summary["responses"]) == (46, 170, 170)


def test_real_pictures_and_videos(shared_data: Path, tmp_path: Path) -> None:
    summary = run(tmp_path / "out", root=shared_data / "real_pairs", importer=import_released, runtime=QUIET)
    assert (summary["groups"], summary["images"], summary["rejected"]) == (3, 3, 0)


def test_limit_counts_records_and_not_rejections(raw: Path, tmp_path: Path) -> None:
    def importer(root: Path) -> Drafts:
        drafts = list(import_released(root))
        return Drafts(iter([Rejection("x", "reason", "where"), *drafts]), len(drafts) + 1)

    summary = run(tmp_path / "out", root=raw, importer=importer, limit=2, runtime=QUIET)
    assert (summary["groups"], summary["rejected"]) == (2, 1)


def test_settings_that_cannot_work(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run(tmp_path, root=raw, importer=import_released, video="gif", runtime=QUIET)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        run(tmp_path, root=raw, importer=import_released, limit=0, runtime=QUIET)


@pytest.mark.slow
def test_worker_processes_change_nothing(raw: Path, tmp_path: Path) -> None:
    workers = Runtime(trainer=L.Trainer, progress=False, num_workers=2)
    run(tmp_path / "one", root=raw, importer=import_released, runtime=QUIET)
    run(tmp_path / "two", root=raw, importer=import_released, runtime=workers)
    assert files(tmp_path / "one") == files(tmp_path / "two")
