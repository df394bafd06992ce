"""A container's small shared memory is found before worker processes stand still in it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stand_ins.fake_groups import make_dataset

from mmrlhf.errors import ConfigError
from mmrlhf.feed import shared_memory
from mmrlhf.feed.dataset import num_bytes
from mmrlhf.feed.shared_memory import PREFETCH_FACTOR, require_shared_memory
from mmrlhf.tensors import EncodedGroup


@pytest.fixture
def group() -> EncodedGroup:
    """An encoded query with pixels of 1 MiB."""
    group = make_dataset(1)[0]
    small = num_bytes(group)
    return replace(group, media={"pixel_values": torch.zeros(2**20 - small, dtype=torch.uint8)})


def give(monkeypatch: pytest.MonkeyPatch, folder: Path, free: int) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))


def test_what_does_not_fit_is_refused_with_numbers_and_a_way_out(monkeypatch, tmp_path, group) -> None:
    give(monkeypatch, tmp_path, 64 * 2**20)
    fits = 64 // (PREFETCH_FACTOR * 4)
    require_shared_memory(group, groups_per_item=4, num_workers=fits)
    with pytest.raises(ConfigError, match="shared memory") as caught:
        require_shared_memory(group, groups_per_item=4, num_workers=fits + 1)
    said = str(caught.value)
    assert "64.0 MiB free" in said and "72.0 MiB free" in said and f"runtime.num_workers={fits}" in said
    assert "--shm-size=1g" in said and str(tmp_path) in said


def test_every_process_of_a_machine_has_its_workers(monkeypatch, tmp_path, group) -> None:
    give(monkeypatch, tmp_path, 64 * 2**20)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    require_shared_memory(group, groups_per_item=4, num_workers=2)
    with pytest.raises(ConfigError, match="3 workers of 4 processes"):
        require_shared_memory(group, groups_per_item=4, num_workers=3)


def test_without_workers_or_shared_memory_nothing_is_asked(monkeypatch, tmp_path, group) -> None:
    give(monkeypatch, tmp_path, 0)
    require_shared_memory(group, groups_per_item=4, num_workers=0)
    give(monkeypatch, tmp_path / "missing", 0)
    require_shared_memory(group, groups_per_item=4, num_workers=8)
