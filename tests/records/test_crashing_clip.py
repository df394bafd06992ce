"""A clip that crashes its decoder costs one query, with and without worker processes, in training and in packing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from stand_ins import calls_that_fail
from stand_ins.fake_groups import FakeEncoder
from stand_ins.sample_groups import make_group, write_records

from mmrlhf.chain.runtime import Runtime
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.module import PreferenceDataModule
from mmrlhf.media import video
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import pack
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.processing import MediaSettings, decode_media
from mmrlhf.types import Media, PreferenceGroup


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that takes any bytes for a clip and crashes on some."""
    monkeypatch.setattr(video, "_probe", calls_that_fail.probe_or_crash)
    monkeypatch.setattr(video, "_sample", calls_that_fail.decode_or_crash)


class Decoding(FakeEncoder):
    """Decodes the media of a group first, as every encoder does."""

    def estimate_tokens(self, entry: Any) -> int:
        return 4

    def __call__(self, group: PreferenceGroup) -> EncodedGroup:
        assert decode_media(group, MediaSettings(num_frames=2)).clips[0].frames.shape == (2, 4, 6, 3)
        return super().__call__(group)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_goes_on_without_it(tmp_path: Path, num_workers: int) -> None:
    clips = [b"crash" if number == 2 else b"clip" for number in range(6)]
    write_shards(
        [make_group(f"g{n}", media=(Media("video", ("mp4",), (clip,)),)) for n, clip in enumerate(clips)], tmp_path
    )
    dataset = GroupDataset(Index.load(tmp_path), Decoding())  # type: ignore[arg-type]
    data = PreferenceDataModule(
        dataset, train_indices=range(6), epochs=2, groups_per_step=4, token_budget=99, seed=0, num_workers=num_workers
    )  # fmt: skip
    steps = list(data.train_dataloader())
    assert [key for step in steps for key in step.quarantined] == ["g2"] * 2, "once in each epoch"
    delivered = sum(int((micro.group_weight > 0).sum()) for step in steps for micro in step.micro_batches)
    lost, padded = sum(step.num_quarantined for step in steps), sum(step.num_padded for step in steps)
    assert (delivered, lost, padded) == (10, 2, 4) and delivered + lost + padded == 4 * len(steps)


@pytest.mark.usefixtures("decoder")
def test_packing_without_workers_rejects_it(tmp_path: Path) -> None:
    answers = [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]
    rows = [{"id": f"q{n}", "video": f"video/{n}.mp4", "prompt": "p", "responses": answers} for n in range(3)]
    raw = write_records(tmp_path / "raw", "data.jsonl", rows)
    (raw / "video").mkdir()
    for number in range(3):
        (raw / "video" / f"{number}.mp4").write_bytes(b"crash" if number == 1 else b"clip")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    summary = pack.run(tmp_path / "out", root=raw, importer=import_released, num_frames=2, runtime=runtime)
    assert summary["groups"] == 2 and summary["rejected_by_reason"] == {"video cannot be decoded faithfully": 1}
    index = Index.load(tmp_path / "out")
    assert [entry.key for entry in index.entries] == ["q0", "q2"]
    assert np.array_equal(index.column("num_frames"), [9, 9])
