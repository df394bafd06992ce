"""The stage that draws the world: both folders, a summary that is JSON, and writing over a half-made folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.shapes.world import write_world
from mmrlhf.stages import world


@pytest.fixture
def runtime() -> Runtime:
    def no_trainer(*args: object, **kwargs: object) -> None:
        raise AssertionError("drawing needs no trainer")

    return Runtime(trainer=no_trainer, progress=False)  # pyright: ignore[reportArgumentType]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_fills_both_folders_and_summarises_them(tmp_path: Path, runtime: Runtime) -> None:
    summary = world.run(tmp_path, num_groups=12, num_warmup=8, seed=1, runtime=runtime)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["preference"]["groups"] == 12 and summary["warmup"]["groups"] == 8
    write_world(tmp_path / "again", num_groups=12, seed=1)
    assert files(tmp_path / "preference") == files(tmp_path / "again")


def test_an_interrupted_run_is_written_over(tmp_path: Path, runtime: Runtime) -> None:
    world.run(tmp_path / "one", num_groups=6, num_warmup=0, seed=1, runtime=runtime)
    (tmp_path / "two" / "preference").mkdir(parents=True)
    (tmp_path / "two" / "preference" / "data.jsonl").write_text('{"id": "half')
    world.run(tmp_path / "two", num_groups=6, num_warmup=0, seed=1, runtime=runtime)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert not (tmp_path / "two" / "warmup").exists()


def test_nothing_to_draw_is_an_error(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="nothing to draw"):
        world.run(tmp_path, num_groups=0, num_warmup=0, seed=1, runtime=runtime)


def test_settings_arrive(tmp_path: Path, runtime: Runtime) -> None:
    """Without noise no pair of unequal responses is tied or reversed; all warm-up records are listings."""
    summary = world.run(
        tmp_path, num_groups=20, num_warmup=10, seed=1, sigma=0.0, warmup_mix={"listing": 1.0}, runtime=runtime
    )
    assert summary["preference"]["reversed"] == summary["preference"]["tied_unequal"] == 0.0
    rows = [json.loads(line) for line in (tmp_path / "warmup" / "data.jsonl").read_text("utf-8").splitlines()]
    assert {row["meta"]["task"] for row in rows} == {"listing"}
