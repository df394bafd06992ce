"""The stage `query_features`: many sets, benchmarks, what is refused before anything runs, and broken encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.sample_groups import make_group, write_records
from stand_ins.small_encoder import drawing

from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation.encoders import Encoder
from mmrlhf.curation.feature_parts import Features
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.records.query_sets import import_queries
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import query_features
from mmrlhf.summaries.curations import QueryFeaturesSummary


def pool(root: Path, count: int = 4) -> Path:
    write_records(root, "s.jsonl", [{"id": n, "image": f"{n}.jpg", "prompt": f"what {n}?"} for n in range(count)])
    for number in range(count):
        (root / f"{number}.jpg").write_bytes(drawing(number))
    return root


def settings(tmp_path: Path, encoder: Path, **more: Any) -> dict[str, Any]:
    return {"sets": {"pool": pool(tmp_path / "pool")}, "encoder": encoder, "importer": import_queries, **more}


def test_sets_of_two_kinds_and_a_benchmark(tmp_path: Path, small_clip: Path, runtime: Runtime) -> None:
    write_shards([make_group("x"), make_group("y", num_responses=0)], tmp_path / "packed")
    given = settings(tmp_path, small_clip, against={"bench": pool(tmp_path / "bench", 2)}, types={"packed": "safety"})
    given["sets"]["packed"] = tmp_path / "packed"
    found = query_features.run(tmp_path / "out", **given, runtime=runtime)
    summary = QueryFeaturesSummary.from_json(found, where="")
    assert summary.queries == 8 and summary.sets == {"pool": 4, "packed": 2, "bench": 2}
    assert summary.types == {"short": 6, "safety": 2}
    queries = Queries(tmp_path / "out" / "queries")
    assert queries.against.tolist() == [False] * 6 + [True] * 2
    features = Features(tmp_path / "out" / "features", queries)
    assert torch.equal(features.take(torch.tensor([0, 1]).numpy()), features.take(torch.tensor([6, 7]).numpy()))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"against": {"pool": "x"}}, "one name"),
        ({"types": {"pol": "safety"}}, "no set of this name"),
        ({"importers": {"pol": "a.b"}}, "no set of this name"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, small_clip: Path, runtime: Runtime, more: dict, said: str) -> None:
    given = settings(tmp_path, small_clip, **more)
    with pytest.raises(ConfigError, match=said):
        query_features.run(tmp_path / "out", **given, runtime=runtime)
    if "importers" not in more:
        with pytest.raises(ConfigError, match=said):
            query_features.check_settings(given)


def test_an_encoder_that_gives_nothing_ends_the_run(
    tmp_path: Path, small_clip: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "pictures", lambda self, images: torch.full((len(images), 16), torch.nan))
    with pytest.raises(ModelError, match="no direction") as caught:
        query_features.run(tmp_path / "out", **settings(tmp_path, small_clip), runtime=runtime)
    assert "4 x features are not finite" in str(caught.value) and "s.jsonl:1" in str(caught.value)
