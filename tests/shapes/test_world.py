"""The written layout: files, fields, pairs, and the same bytes from the same seed."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from mmrlhf.errors import ConfigError
from mmrlhf.records.draft import Draft
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.shapes import judge
from mmrlhf.shapes.forms import FORMS
from mmrlhf.shapes.prompts import SHARES
from mmrlhf.shapes.ranked_query import PreferenceSettings
from mmrlhf.shapes.world import WorldKind, WorldSettings, write_world


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, num_groups=80, seed=0)
    return root


def test_data_rows_have_the_released_fields_and_their_media(root: Path) -> None:
    rows = read(root / "data.jsonl")
    assert len(rows) == 80 and len({row["id"] for row in rows}) == 80
    for row in rows:
        media = "video" if row["category"] == "video" else "image"
        assert set(row) == {"id", media, "prompt", "category", "responses", "meta"}
        assert re.fullmatch(r"[A-Za-z0-9_-]+", row["id"])
        assert row[media].split("/")[0] == row["category"] and (root / row[media]).stat().st_size > 0
        for response in row["responses"]:
            assert set(response) == {"text", "rank", "scores", "reasons", "critiques", "model"}
            assert set(response["critiques"]) == {"full", "short", "evidence"}
            checks = {name: score for name, score in response["scores"].items() if name.startswith("check_")}
            assert all(1 <= score <= 5 for name, score in response["scores"].items() if name not in checks)
            assert set(checks) == {"check_1", "check_2", "check_3"} and set(checks.values()) <= {0.0, 1.0}
    assert {path.name for path in root.iterdir()} == {*SHARES, "data.jsonl", "dpo_pairs.jsonl"}


def test_pair_rows_are_all_pairs_better_one_first(root: Path) -> None:
    pairs = read(root / "dpo_pairs.jsonl")
    ranks = {}
    for row in read(root / "data.jsonl"):
        ranks[row["id"]] = {response["text"]: response["rank"] for response in row["responses"]}
    assert len(pairs) == sum(len(list(combinations(found, 2))) for found in ranks.values())
    fields = {"id", "prompt", "chosen", "rejected", "chosen_reason", "rejected_reason", "is_tie"}
    for pair in pairs:
        assert set(pair) - {"image", "video"} == fields and len(set(pair)) == len(fields) + 1
        chosen, rejected = ranks[pair["id"]][pair["chosen"]], ranks[pair["id"]][pair["rejected"]]
        assert chosen == rejected if pair["is_tie"] else chosen < rejected
    assert {pair["is_tie"] for pair in pairs} == {True, False}


def test_other_forms_leave_the_others_as_they_are_and_read_as_they_say(root: Path, tmp_path: Path) -> None:
    settings = WorldSettings(preference=PreferenceSettings(other_forms=0.25))
    write_world(tmp_path, num_groups=80, seed=0, settings=settings)
    plain, rows = read(root / "data.jsonl"), read(tmp_path / "data.jsonl")
    forms = [row["meta"].get("form", "") for row in rows]
    assert {form: forms.count(form) for form in FORMS} == {"between": 8, "turns": 6, "own": 6}
    drafts = [item for item in import_released(tmp_path) if isinstance(item, Draft)]
    assert len(drafts) == 80
    for before, row, form, draft in zip(plain, rows, forms, drafts, strict=True):
        assert [r["text"] for r in row["responses"]] == [r["text"] for r in before["responses"]]
        if not form:
            assert row == before
            path = row.get("image") or row["video"]
            assert (root / path).read_bytes() == (tmp_path / path).read_bytes()
        group = draft.load()
        assert group.has_own_media == (form == "own")
        said = {"between": r"user:(titit|tvt)", "turns": r"system:t user:[iv]t assistant:t user:t"}
        assert re.fullmatch(said.get(form, ""), group.prompt.form)
        assert judge.quality(group.meta, group.responses[0].text) == judge.quality(
            before["meta"], group.responses[0].text
        )


@pytest.mark.parametrize("kind", ["preference", "warmup"])
def test_equal_seeds_give_equal_folders(tmp_path: Path, kind: WorldKind) -> None:
    contents = []
    for name in ("one", "two"):
        summary = write_world(tmp_path / name, num_groups=30, seed=3, kind=kind)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append(([(str(p.relative_to(tmp_path / name)), p.read_bytes()) for p in files], summary))
    assert contents[0] == contents[1]


def test_pixels_do_not_change_text_and_labels(tmp_path: Path, root: Path) -> None:
    write_world(tmp_path, num_groups=20, seed=0, settings=WorldSettings(noise=0.0, image_format="jpg"))
    assert [row["responses"] for row in read(tmp_path / "data.jsonl")] == [
        row["responses"] for row in read(root / "data.jsonl")[:20]
    ]


def test_a_warm_up_folder_has_single_responses_and_no_pairs(tmp_path: Path) -> None:
    summary = write_world(tmp_path, num_groups=20, seed=0, kind="warmup")
    assert {path.name for path in tmp_path.iterdir()} == {"warmup", "data.jsonl"}
    rows = read(tmp_path / "data.jsonl")
    assert all(row["category"] == "warmup" and len(row["responses"]) == 1 for row in rows)
    assert summary["groups"] == 20 and summary["pairs"] == 0


def test_words_are_few(tmp_path: Path, root: Path) -> None:
    write_world(tmp_path, num_groups=200, seed=0, kind="warmup")
    words = set()
    for row in read(tmp_path / "data.jsonl") + read(root / "data.jsonl"):
        words |= set(row["prompt"].split())
        for response in row["responses"]:
            words |= set(" ".join([response["text"], *response["critiques"].values()]).split())
    assert len(words) < 100


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one group"):
        write_world(tmp_path, num_groups=0, seed=0)
    with pytest.raises(ConfigError, match="image format"):
        WorldSettings(image_format="webp")
    for num_objects in ((1, 4), (3, 3), (2, 5)):
        with pytest.raises(ConfigError, match="number of objects"):
            WorldSettings(preference=PreferenceSettings(num_objects=num_objects))
    with pytest.raises(ConfigError, match="jitter"):
        WorldSettings(jitter=5)
