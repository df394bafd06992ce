"""The study of critiques: what it runs, and what it makes of the rewards that the arms leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from stand_ins.scripts import loaded_script

from mmrlhf.records.draft import Draft
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.shapes.world import write_world
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCarWriter
from mmrlhf.shards.writer import write_shards


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with loaded_script("critiques", "experiments/02_critiques/study.py") as module:
        yield module


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn queries, packed."""
    root, folder = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("pack")
    write_world(root, num_groups=24, seed=0)
    write_shards((draft.load() for draft in import_released(root) if isinstance(draft, Draft)), folder)
    return folder


def leave(folder: Path, pack: Path, power: float, *, share: float = 1.0, kind: str = "") -> None:
    """What a run leaves whose rewards are the true quality times `power`, for a share of its queries."""
    (folder / "artifacts" / "score").mkdir(parents=True, exist_ok=True)
    if not (folder / "artifacts" / "pack").exists():
        (folder / "artifacts" / "pack").symlink_to(pack)
    (folder / "artifacts" / "score" / "artifact.json").write_text(json.dumps({"settings": {"holdout": 0.5}}))
    table = folder / (f"rewards_given_{kind}" if kind else "artifacts/score/rewards")
    index = Index.load(pack)
    rows = index.split("heldout", 0.5)
    with SideCarWriter(table, columns=["reward"], fingerprint={}) as writer:
        for row in rows[: int(share * len(rows))]:
            group = index.read(int(row), media=False)
            for response, quality in zip(group.responses, group.meta["quality"], strict=True):
                writer.add(group.key, response.hash, {"reward": power * quality})


def test_arms_are_compared_pair_by_pair_over_seeds(
    study: ModuleType, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scalar, forced, given = (study.ARMS[number] for number in (0, 2, 6))
    for seed in (0, 1):
        leave(study.folder_of(scalar, seed, tmp_path), pack, -1.0)
        leave(study.folder_of(forced, seed, tmp_path), pack, 1.0)
    leave(study.folder_of(given, 0, tmp_path), pack, 1.0, kind=given.kind)
    leave(study.folder_of(given, 1, tmp_path), pack, 1.0, kind=given.kind, share=0.5)
    study.main(["--collect", "--seeds", "0,1", "--out", str(tmp_path), "--results", str(tmp_path / "results")])
    with (tmp_path / "results" / "results.csv").open() as file:
        rows = {(row["judge"], row["arm"], row["looks"]): row for row in csv.DictReader(file)}
    one, other = (rows["truth", arm.name, "all"] for arm in (scalar, forced))
    assert float(one["acc_mean"]) == 0 and float(one["ahead_mean"]) == 0 and one["seeds"] == "0:0.0000 1:0.0000"
    assert float(other["acc_mean"]) == 1 and other["seeds"] == "0:1.0000 1:1.0000"
    assert 0.7 < float(other["ahead_low"]) < 1
    # the table of seed 1 was not finished
    assert rows["truth", given.name, "all"]["seeds"] == "0:1.0000"
    said = capsys.readouterr().out
    assert f"{given.name}, seed 1" in said and f"{study.ARMS[1].name}, seed 0" in said
    # every pair takes one number of looks
    parts = [int(row["pairs"]) for key, row in rows.items() if key[:2] == ("truth", scalar.name) and key[2] != "all"]
    assert sum(parts) == int(one["pairs"]) and len(parts) > 1
    assert (tmp_path / "results" / "results.png").stat().st_size > 1000
    assert f"| {forced.name} | 1.000 [0." in (tmp_path / "results" / "results.md").read_text()


def test_arms_of_other_queries_are_not_compared(study: ModuleType, pack: Path, tmp_path: Path) -> None:
    for arm, holdout in ((study.ARMS[0], 0.5), (study.ARMS[2], 0.25)):
        folder = study.folder_of(arm, 0, tmp_path)
        leave(folder, pack, 1.0)
        (folder / "artifacts" / "score" / "artifact.json").write_text(json.dumps({"settings": {"holdout": holdout}}))
    with pytest.raises(ValueError, match="other pairs"):
        study.main(["--collect", "--seeds", "0", "--out", str(tmp_path), "--results", str(tmp_path)])


def test_a_failed_run_does_not_stop_the_others(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def fail(command: list[str], **_: object) -> SimpleNamespace:
        calls.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(study.subprocess, "run", fail)
    with pytest.raises(SystemExit, match="scalar"):
        study.main(["--seeds", "0,1", "--out", str(tmp_path), "scale=tiny"])
    trained = [arm for arm in study.ARMS if not arm.given_to]
    assert len(calls) == 2 * len(trained) and capsys.readouterr().out.count("failed: ") == len(calls)
    assert all(call[1:3] == ["run.py", "stage=score"] and call[-1] == "scale=tiny" for call in calls)
    assert len({word for call in calls for word in call if word.startswith("hydra.run.dir=")}) == len(calls)
