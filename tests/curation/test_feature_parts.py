"""Features: what transformers itself gives, in parts that survive a stop, and rows that have none."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.sample_groups import write_records
from stand_ins.small_encoder import build_clip, drawing
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from mmrlhf.curation import encoding, feature_parts
from mmrlhf.curation.encoders import Encoder
from mmrlhf.curation.encoding import FeatureSettings, text_digest
from mmrlhf.curation.feature_parts import ROWS, Features, PartMaker, make_features
from mmrlhf.curation.hashes import BITS, bit_distance, difference_hash
from mmrlhf.curation.query_rows import Queries, QuerySet, write_queries
from mmrlhf.errors import DataError, ModelError, UserError
from mmrlhf.media.images import decode_image
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.records.query_sets import import_queries


def rows(root: Path, count: int = 10, **more: Any) -> Queries:
    """Ten questions: one in five about nothing to see, others about a picture each."""
    root.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for number in range(count):
        record = {"id": number, "prompt": f"how many red circle {number}", **more}
        if number % 5:
            (root / f"{number}.jpg").write_bytes(drawing(number))
            record["image"] = f"{number}.jpg"
        records.append(record)
    write_records(root, "set.jsonl", records)
    write_queries(root / "q", {"one": QuerySet(root, import_queries)})
    return Queries(root / "q")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_parts, "ROWS_PER_PART", 4)


def made(folder: Path, queries: Queries, encoder: Encoder, of: Any = "both", **options: Any) -> Features:
    maker = PartMaker(folder, queries, encoder, FeatureSettings(of, batch=3))
    make_features(maker, progress=False, **options)
    maker.finish()
    return Features(folder, queries)


def test_features_are_those_of_transformers(tmp_path: Path, small_clip: Path, small_parts: None) -> None:
    queries, encoder = rows(tmp_path), Encoder(small_clip)
    found = made(tmp_path / "f", queries, encoder)
    model, processor = AutoModel.from_pretrained(small_clip).eval(), AutoProcessor.from_pretrained(small_clip)
    picture = decode_image((tmp_path / "3.jpg").read_bytes(), where="")
    with torch.no_grad():
        shown = model.get_image_features(**processor(images=picture, return_tensors="pt")).pooler_output[0]
        words = model.get_text_features(
            **processor(text=["how many red circle 3"], return_tensors="pt", padding=True)
        ).pooler_output[0]
    wanted = torch.cat([shown / shown.norm(), words / words.norm()]) / 2**0.5
    torch.testing.assert_close(found.take(np.array([3]))[0], wanted, atol=2e-3, rtol=0)
    text_only = found.take(np.array([5]))[0]
    assert not text_only[: encoder.dim].any() and abs(float(text_only.norm()) - 1) < 1e-3
    assert found.dim == 2 * encoder.dim == 32 and found.picture_dim == 16 and not found.left_out
    assert found.hashes[3] == difference_hash(picture) and found.media[5] == 0 and len(set(found.media.tolist())) == 9
    assert found.texts[3] == text_digest("how many red circle 3") and len(set(found.texts.tolist())) == 10
    norms = torch.cat(list(found.chunks(np.arange(10), 3))).norm(dim=1)
    assert ((norms - 1).abs() < 1e-3).all()


def test_a_stopped_pass_goes_on_and_gives_the_same(
    tmp_path: Path, small_clip: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the second of three parts: the first stays, and no part is encoded twice."""
    queries, encoder = rows(tmp_path), Encoder(small_clip)
    whole = made(tmp_path / "whole", queries, encoder).take(np.arange(10))
    write, calls, second = os.pwrite, [], 4 * 32 * 2

    def full(file: int, content: bytes, offset: int) -> int:
        calls.append(offset)
        if calls.count(second) == 1 and offset == second:
            write(file, b"half of", offset)
            raise OSError(28, "No space left on device")
        return write(file, content[:100], offset)  # a disk may take less than it is given

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        made(tmp_path / "f", queries, encoder)
    assert [path.name for path in sorted((tmp_path / "f").iterdir())] == ["features.f16", "part-00000.json"]
    found = made(tmp_path / "f", queries, encoder)
    assert calls.count(0) == 1 and torch.equal(found.take(np.arange(10)), whole)


def test_several_processes_make_the_same_parts(tmp_path: Path, small_clip: Path, small_parts: None) -> None:
    queries, encoder = rows(tmp_path), Encoder(small_clip)
    alone = made(tmp_path / "alone", queries, encoder)
    make_features(
        PartMaker(tmp_path / "two", queries, encoder, FeatureSettings(batch=3)), rank=1, ranks=2, progress=False
    )
    assert [path.name for path in (tmp_path / "two").glob("part-*")] == ["part-00001.json"]
    both = made(tmp_path / "two", queries, encoder, rank=0, ranks=2, threads=2)
    assert torch.equal(both.take(np.arange(10)), alone.take(np.arange(10)))
    assert (tmp_path / "two" / ROWS).read_bytes() == (tmp_path / "alone" / ROWS).read_bytes()


def test_a_damaged_part_is_named_and_only_it_is_made_again(
    tmp_path: Path, small_clip: Path, small_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    queries, encoder = rows(tmp_path), Encoder(small_clip)
    wanted = made(tmp_path / "f", queries, encoder).take(np.arange(10))
    path, place = tmp_path / "f" / ROWS, 5 * wanted.shape[1] * 2
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(DataError, match=r"features\.f16") as caught:
        Features(tmp_path / "f", queries)
    assert "part 1" in str(caught.value) and "only what is damaged is made anew" in str(caught.value)
    (tmp_path / ARTIFACT_FILE).touch()  # as of a stage that is finished, and would be reused
    with pytest.raises(DataError, match=r"features\.f16") as caught:
        Features(tmp_path / "f", queries)
    assert f"delete {tmp_path}, " in str(caught.value.fix)
    (tmp_path / ARTIFACT_FILE).unlink()
    others = {each: each.stat().st_mtime_ns for each in (tmp_path / "f").glob("part-*") if "00001" not in each.name}
    assert torch.equal(made(tmp_path / "f", queries, encoder).take(np.arange(10)), wanted)
    assert len(others) == 2 and others == {each: each.stat().st_mtime_ns for each in others}
    path.write_bytes(content[:place])
    with pytest.raises(DataError, match=r"features\.f16"):
        Features(tmp_path / "f", queries)
    assert torch.equal(made(tmp_path / "f", queries, encoder).take(np.arange(10)), wanted)


def test_many_parts_take_one_file_and_little_memory(
    tmp_path: Path, small_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part was a mapping and an open file of its own: four million rows were 1,024 files."""
    monkeypatch.setattr(feature_parts, "ROWS_PER_PART", 1)
    queries, encoder = rows(tmp_path, 40), Encoder(small_clip)
    wanted = made(tmp_path / "f", queries, encoder).take(np.arange(40))
    open_now = len(os.listdir("/dev/fd"))
    advice: list[int] = []

    class Recorded(mmap.mmap):
        def madvise(self, option: int, *where: int) -> None:
            advice.append(option)
            super().madvise(option, *where)

    monkeypatch.setattr(feature_parts.mmap, "mmap", Recorded)
    monkeypatch.setattr(feature_parts, "_MOST_MAPPED", 0)  # what was read is unmapped at once, and read again
    found = Features(tmp_path / "f", queries)
    assert len(os.listdir("/dev/fd")) <= open_now + 1
    assert torch.equal(found.take(np.arange(40)[::-1].copy()), wanted.flip(0))
    assert torch.equal(found.take(np.array([7, 7, 3]), slice(4, 9)), wanted[[7, 7, 3], 4:9])
    assert advice == [mmap.MADV_DONTNEED] * (40 + 2), "after each part's checksum, and each time rows are taken"


def test_features_of_other_rows_or_of_another_encoder(tmp_path: Path, small_clip: Path, small_parts: None) -> None:
    queries, encoder = rows(tmp_path / "a"), Encoder(small_clip)
    made(tmp_path / "f", queries, encoder)
    other = rows(tmp_path / "b", count=9)
    with pytest.raises(DataError, match="features of other rows"):
        Features(tmp_path / "f", other)
    with pytest.raises(DataError, match="made by something else") as caught:
        make_features(PartMaker(tmp_path / "f", other, encoder, FeatureSettings()), progress=False)
    assert "rows" in str(caught.value)
    changed = Encoder(build_clip(tmp_path / "clip", seed=1))
    with pytest.raises(DataError, match="made by something else") as caught:
        make_features(PartMaker(tmp_path / "f", queries, changed, FeatureSettings()), progress=False)
    assert "weights" in str(caught.value)


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), encoding.NOT_FINITE), (0.0, encoding.ZERO)])
def test_a_row_without_a_direction_says_so(
    tmp_path: Path, small_clip: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, value: float, reason: str
) -> None:
    queries, encoder = rows(tmp_path), Encoder(small_clip)
    pictures = encoder.pictures

    def broken(images: list[Image.Image]) -> torch.Tensor:
        found = pictures(images).clone()
        found[0] = value
        return found

    monkeypatch.setattr(encoder, "pictures", broken)
    found = made(tmp_path / "f", queries, encoder)
    # the first picture of every batch of three: rows 1, 3, 6 and 8; parts begin at 0, 4, 8
    assert found.left_out and set(found.left_out.values()) == {reason}
    left = found.take(np.array(sorted(found.left_out)))
    assert not left.any() and torch.isfinite(found.take(np.arange(10))).all()


def test_media_that_cannot_be_read_leave_out_their_query_alone(
    tmp_path: Path, small_clip: Path, small_parts: None
) -> None:
    queries, encoder = rows(tmp_path), Encoder(small_clip)
    (tmp_path / "2.jpg").unlink()
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    found = made(tmp_path / "f", queries, encoder, of="image")
    assert set(found.left_out) == {0, 2, 3, 5} and found.dim == 16
    assert "no picture or clip" in found.left_out[0] and "missing" in found.left_out[2]


def test_texts_that_are_cut_are_counted(tmp_path: Path, small_clip: Path) -> None:
    queries, encoder = rows(tmp_path, count=3, prompt="red " * 30), Encoder(small_clip)
    found = made(tmp_path / "f", queries, encoder, of="text")
    assert found.texts_cut == 3 and found.picture_dim == 0 and found.dim == 16


def test_too_small_a_disk_is_said_before_anything_is_encoded(
    tmp_path: Path, small_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, encoder = rows(tmp_path, count=2), Encoder(small_clip)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="do not fit on the disk"):
        made(tmp_path / "f", queries, encoder)


def test_an_encoder_without_features_of_pictures(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no features of pictures") as caught:
        Encoder(tmp_path)
    assert "get_image_features" in str(caught.value)


def test_an_encoder_that_lacks_weights_or_a_processor(tmp_path: Path, small_clip: Path) -> None:
    shutil.copytree(small_clip, tmp_path / "bare", ignore=shutil.ignore_patterns("*processor*", "*tokenizer*"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        Encoder(tmp_path / "bare")
    shutil.copytree(small_clip, tmp_path / "wider")
    config = json.loads((tmp_path / "wider" / "config.json").read_text())
    config["projection_dim"] = 24
    (tmp_path / "wider" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        Encoder(tmp_path / "wider")


def test_hashes_of_the_same_picture_are_close_and_of_others_far() -> None:
    def hashed(number: int, **how: int) -> int:
        return difference_hash(decode_image(drawing(number, **how), where=""))

    first = np.array([hashed(number) for number in range(12)], dtype=np.uint64)
    worse = np.array([hashed(number, quality=40, side=40) for number in range(12)], dtype=np.uint64)
    assert bit_distance(first, worse).max() <= 6
    others = bit_distance(first[:, None], first)[~np.eye(12, dtype=bool)]
    assert others.min() > 12
    assert difference_hash(Image.new("RGB", (50, 40), "red")) == 0
    assert bit_distance(np.uint64(0), np.uint64(0)) == BITS and bit_distance(np.uint64(5), np.uint64(4)) == 1
