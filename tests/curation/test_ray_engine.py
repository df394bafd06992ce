"""Features by Ray Data: the same bytes as those of one process, on a real cluster of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from stand_ins.sample_groups import write_records
from stand_ins.small_encoder import build_clip, drawing

from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation import feature_parts, ray_engine
from mmrlhf.curation.encoders import Encoder
from mmrlhf.curation.encoding import FeatureSettings
from mmrlhf.curation.feature_parts import ROWS, PartMaker, make_features
from mmrlhf.curation.query_rows import Queries, QuerySet, write_queries
from mmrlhf.curation.ray_engine import cluster, make_features_on_cluster
from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.inference.sharing import Ranks
from mmrlhf.records.query_sets import import_queries
from mmrlhf.stages import query_features

SETTINGS = FeatureSettings(batch=512)


def test_a_machine_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        query_features.check_settings({"engine": "ray"})
    assert 'pip install "mmrlhf[ray]"' in str(caught.value) and caught.value.argument == "engine"
    query_features.check_settings({"engine": "local"})


def test_ray_is_not_started_by_several_processes(
    tmp_path: Path, small_clip: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def two(runtime: Runtime) -> Iterator[Ranks]:
        yield Ranks(0, 2)

    monkeypatch.setattr(query_features, "share_pass", two)
    monkeypatch.setattr(query_features, "check_ray", lambda: None)
    with pytest.raises(ConfigError, match="processes of its own") as caught:
        query_features.run(
            tmp_path, sets={"one": tmp_path}, encoder=small_clip, importer=import_queries, engine="ray", runtime=runtime
        )
    assert "trainer.devices=1" in str(caught.value)


def pool(root: Path) -> Queries:
    """Two parts and a bit: pictures, a text alone, and one whose picture is damaged."""
    count = 2 * feature_parts.ROWS_PER_PART + 5
    rows = [{"id": n, "prompt": f"how many red circle {n % 9}"} for n in range(count)]
    root.mkdir()
    for number in (1, 2, 5, count - 2, count - 1):
        rows[number]["image"] = f"{number}.jpg"
        (root / f"{number}.jpg").write_bytes(b"no picture" if number == 5 else drawing(number))
    write_records(root, "s.jsonl", rows)
    write_queries(root / "q", {"one": QuerySet(root, import_queries)})
    return Queries(root / "q")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data sets settings of its own that it calls deprecated
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_both_engines_leave_the_same_bytes(tmp_path: Path) -> None:
    clip = build_clip(tmp_path / "clip")
    queries, encoder = pool(tmp_path / "pool"), Encoder(clip)
    local = PartMaker(tmp_path / "local", queries, encoder, SETTINGS)
    make_features(local, progress=False)
    shared = PartMaker(tmp_path / "ray", queries, encoder, SETTINGS)
    make_features(shared, rank=1, ranks=3, progress=False)  # one part was made before
    with cluster():
        before = (tmp_path / "ray" / "part-00001.json").stat().st_mtime_ns
        make_features_on_cluster(shared, "float32", accelerator="cpu", progress=False)
        for each in (local, shared):
            each.finish()
        names = sorted(path.name for path in (tmp_path / "local").iterdir())
        assert names == [ROWS, "features.json", *(f"part-0000{number}.json" for number in range(3))]
        for name in names:
            assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
        assert (tmp_path / "ray" / "part-00001.json").stat().st_mtime_ns == before, "what was there stays"
        with pytest.raises(ConfigError, match="no GPU"):
            make_features_on_cluster(PartMaker(tmp_path / "gpu", queries, encoder, SETTINGS), "float32",
                                     accelerator="gpu", progress=False)  # fmt: skip
        build_clip(clip, seed=1)  # as where machines hold different checkpoints under one path
        with pytest.raises(ModelError, match="different encoders under one name"):
            make_features_on_cluster(PartMaker(tmp_path / "other", queries, encoder, SETTINGS), "float32",
                                     accelerator="cpu", progress=False)  # fmt: skip
