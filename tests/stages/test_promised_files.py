"""Every stage says what is in its finished artefact, so that no half of one is ever published."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.chain.order import Node, check_promises, plan_chain
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError, ModelError
from mmrlhf.stages import tiny, world

STAGES = sorted(path.stem for path in Path(tiny.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_promises_something(name: str) -> None:
    module = importlib.import_module(f"mmrlhf.stages.{name}")
    assert callable(module.run), "a file of this folder is a stage"
    promised = module.PROMISES
    assert isinstance(promised, tuple) and promised and all(isinstance(item, str) and item for item in promised)
    assert not [item for item in promised if Path(item).is_absolute() or ".." in Path(item).parts]


def _world() -> Node:
    settings: dict[str, Any] = {"_target_": "mmrlhf.stages.world.run", "num_groups": 2, "num_warmup": 0, "seed": 0}
    return plan_chain("world", {"world": settings}.__getitem__, ["world"])[0]


def test_a_world_that_stopped_half_way_is_not_published(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(tmp_path / "whole", num_groups=2, num_warmup=0, seed=0, runtime=runtime)
    check_promises(_world(), tmp_path / "whole")
    monkeypatch.setattr("mmrlhf.shapes.world.track", lambda rows, *args, **kwargs: _stops_at_the_second(rows))
    with pytest.raises(OSError, match="disk"):
        world.run(tmp_path / "half", num_groups=2, num_warmup=0, seed=0, runtime=runtime)
    with pytest.raises(DataError, match=r"nothing is published[\s\S]*no metrics\.json"):
        check_promises(_world(), tmp_path / "half")


def _stops_at_the_second(rows: Any) -> Any:
    yield next(iter(rows))
    raise OSError("the disk is full")


def test_a_tiny_model_without_its_processor_is_not_published(
    tmp_path: Path, small_shards: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tiny.build_tiny

    def half(family: str, folder: Path, **options: Any) -> Any:
        model = build(family, folder, **options)
        for file in folder.glob("*processor*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        return model

    tiny.run(tmp_path / "whole", shards=small_shards, family="llava_onevision", runtime=runtime)
    monkeypatch.setattr(tiny, "build_tiny", half)
    with pytest.raises(ModelError):
        tiny.run(tmp_path / "half", shards=small_shards, family="llava_onevision", runtime=runtime)
