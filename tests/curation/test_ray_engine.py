"""Features by Ray Data: the same bytes as those of one process, on a real cluster of this machine."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_ins.sample_groups import write_records
from stand_ins.small_encoder import build_clip, drawing

from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation import feature_parts, ray_engine
from mmrlhf.curation.encoders import Encoder
from mmrlhf.curation.encoding import FeatureSettings
from mmrlhf.curation.feature_parts import ROWS, PartMaker, make_features
from mmrlhf.curation.query_rows import Queries, QuerySet, write_queries
from mmrlhf.curation.ray_engine import Room, cluster, make_features_on_cluster, room_of
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


NO_ADDRESSES = ["wrong", "wrong:", ":6379", "ray://head", "head:port", "head:99999999", "[::1:6379"]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_an_address_that_is_none_is_refused_before_anything_runs(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: name)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="no Ray cluster") as caught:
        query_features.check_settings({"engine": "ray"})
    text = str(caught.value)
    assert f"{address} (" in text and "RAY_ADDRESS" in text and "HOST:PORT" in text and "unset RAY_ADDRESS" in text
    query_features.check_settings({"engine": "local"})
    for good in ("", "auto", "local", "head:6379", "ray://head:10001", "[::1]:6379", "other://anything"):
        monkeypatch.setenv("RAY_ADDRESS", good)
        query_features.check_settings({"engine": "ray"})


class Failed(Exception):
    """As `ray.exceptions.RayError`, which is no error of Python's own kinds."""


@pytest.mark.parametrize(
    "error", [ConnectionError("no instance"), RuntimeError("version"), ValueError("x"), Failed("y")]
)
def test_a_cluster_that_is_not_there_or_refuses_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray tries an address where nothing listens for many minutes, and then raises errors of several kinds."""
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        asked.append(options)
        raise error

    stand_in = SimpleNamespace(init=init, is_initialized=lambda: False, exceptions=SimpleNamespace(RayError=Failed))
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for each in ("auto", address, f"ray://{address}"):
            monkeypatch.setenv("RAY_ADDRESS", each)
            with pytest.raises(ConfigError, match="no Ray cluster") as caught, cluster():
                pass
            assert caught.value.given == f"{each} ({error})"
    assert len(asked) == 3
    with pytest.raises(ConfigError, match="no Ray cluster") as caught, cluster():
        pass
    assert "refused" in str(caught.value.given) and len(asked) == 3, "Ray is not asked where nothing listens"


BIG, SMALL = {"CPU": 64.0, "GPU": 0.0}, {"CPU": 8.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("machines", "accelerator", "threads", "wanted"),
    [
        ([BIG, SMALL], "gpu", 16, Room(2, 1, 4)),  # an actor of 16 processors would fit on no machine with GPUs
        ([BIG, SMALL], "auto", 1, Room(1, 1, 4)),
        ([SMALL, {"CPU": 64.0, "GPU": 8.0}], "cuda", 16, Room(2, 1, 12)),
        ([{"CPU": 2.0, "GPU": 4.0}], "gpu", 16, Room(0, 1, 4)),
        ([{"GPU": 1.0}], "auto", 3, Room(0, 1, 1)),
        ([BIG, SMALL], "cpu", 16, Room(16, 0, 4)),
        ([{"CPU": 8.0}, {"CPU": 2.5}], "auto", 4, Room(4, 0, 2)),
        ([{"CPU": 1.0}, {}], "auto", 4, Room(1, 0, 1)),
    ],
)
def test_every_actor_fits_on_a_machine_and_no_gpu_is_idle(
    machines: list[dict[str, float]], accelerator: str, threads: int, wanted: Room
) -> None:
    found = room_of(machines, accelerator, threads)
    assert found == wanted
    fits = [
        min(each.get(name, 0) // number for name, number in (("CPU", found.cpus), ("GPU", found.gpus)) if number)
        for each in machines
    ]
    assert sum(fits) == found.actors


def test_gpus_that_no_machine_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        room_of([BIG, {"CPU": 2.0}], "gpu", 1)


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
        build_clip(clip, seed=1)  # as where machines hold different checkpoints under one path
        with pytest.raises(ModelError, match="different encoders under one name"):
            make_features_on_cluster(PartMaker(tmp_path / "other", queries, encoder, SETTINGS), "float32",
                                     accelerator="cpu", progress=False)  # fmt: skip
