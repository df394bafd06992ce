import io
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stand_ins import calls_that_fail
from stand_ins.clips import make_clip, number, picture
from torch.utils.data import DataLoader

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.media import isolation, video
from mmrlhf.media.decord_reader import has_decord
from mmrlhf.media.headers import Deadline
from mmrlhf.media.video import decode_frames, decode_video, frames_record, probe_video, sample_indices

GOOD = ["video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov", "unordered.mov"]
BACKENDS = ["pyav", pytest.param("decord", marks=pytest.mark.skipif(not has_decord(), reason="no decord"))]


CLIPS = {
    "mp4 with B-frames": {},
    "one long GOP": {"gop": 100},
    "no B-frames": {"b_frames": 0},
    "mkv": {"fmt": "matroska"},
    "variable rate": {"stamps": [i + (i // 7) * 3 for i in range(50)]},
    "mpeg4": {"codec": "mpeg4", "b_frames": 0},
}


@settings(deadline=None)
@given(total=st.integers(1, 10_000), num_frames=st.integers(1, 64))
def test_sampling_is_the_linspace_rule_in_exact_arithmetic(total, num_frames):
    indices = sample_indices(total, num_frames)
    assert len(indices) == num_frames and (np.diff(indices) >= 0).all()
    assert 0 <= indices.min() and indices.max() < total
    if num_frames > 1:
        assert (indices[0], indices[-1]) == (0, total - 1)
        assert np.abs(indices - np.linspace(0, total - 1, num_frames)).max() < 1
    if num_frames == total:
        assert indices.tolist() == list(range(total))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CLIPS)
def test_each_sampled_frame_is_the_one_asked_for(name, backend):
    clip = decode_video(make_clip(**CLIPS[name]), num_frames=7, backend=backend, where=name)
    assert [number(frame) for frame in clip.frames] == sample_indices(50, 7).tolist() == [0, 8, 16, 24, 32, 40, 49]
    times = CLIPS[name].get("stamps", range(50))
    np.testing.assert_allclose(clip.timestamps, [times[i] / 10 for i in (0, 8, 16, 24, 32, 40, 49)], atol=2e-3)
    assert clip.total_frames == 50


@pytest.mark.skipif(not has_decord(), reason="no decord")
@pytest.mark.parametrize("name", GOOD)
def test_back_ends_give_the_same_bytes_on_phone_clips(name, shared_data):
    data = (shared_data / "video" / name).read_bytes()
    one, other = (decode_video(data, num_frames=4, backend=b, where=name) for b in ("decord", "pyav"))
    assert np.array_equal(one.frames, other.frames) and np.array_equal(one.timestamps, other.timestamps)


@pytest.mark.skipif(not has_decord(), reason="no decord")
def test_back_ends_give_the_same_bytes_on_a_real_clip(shared_data):
    data = (shared_data / "real_pairs" / "video" / "flipping_a_pancake.mkv").read_bytes()
    one, other = (decode_video(data, num_frames=16, backend=b, where="pancake") for b in ("decord", "pyav"))
    assert np.array_equal(one.frames, other.frames)
    assert one.frames.shape == (16, 240, 426, 3) and one.total_frames == 310


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "shape"), [("90", (568, 320)), ("180", (320, 568)), ("270", (568, 320))])
def test_rotation_metadata_turns_phone_clips(name, shape, backend, shared_data):
    """The clips show parts of one keyboard, filmed with the phone held four ways; only their size can be compared."""
    data = (shared_data / "video" / f"video_{name}.mov").read_bytes()
    frame = decode_video(data, num_frames=1, backend=backend, where=name).frames[0]
    assert frame.shape[:2] == shape
    assert probe_video(data, name)[2:] == (shape[1], shape[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_metadata_sets_the_picture_upright(turns, backend):
    """Upright, the upper left quarter is white. Stored turned clockwise, the metadata turns it back the other way."""
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32] = 255
    stored = np.ascontiguousarray(np.rot90(upright, -turns))
    data = make_clip(3, still=stored, rotation=90 * turns)
    frame = decode_video(data, num_frames=1, backend=backend, where="x").frames[0]
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 5


def test_a_mirrored_clip_is_refused():
    """The display matrix of an mp4 lies in its track header; its first entry 1.0 becomes -1.0: a horizontal flip."""
    data = make_clip(5)
    at = data.index(b"tkhd") + 44
    assert data[at : at + 4] == b"\x00\x01\x00\x00"
    with pytest.raises(DataError, match="mirrored"):
        decode_video(data[:at] + b"\xff\xff\x00\x00" + data[at + 4 :], num_frames=2, where="x")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_short_clip_repeats_frames_so_that_the_shape_is_constant(backend):
    clip = decode_video(make_clip(3), num_frames=5, backend=backend, where="x")
    assert [number(frame) for frame in clip.frames] == [0, 0, 1, 1, 2]


def test_fps_sampling_takes_what_the_duration_gives_up_to_the_limit():
    """50 frames at 10 a second last 5 s: at 2 a second 10 frames, and never more than num_frames."""
    data = make_clip()
    assert len(decode_video(data, num_frames=32, sampling="fps", fps=2, where="x").frames) == 10
    assert len(decode_video(data, num_frames=4, sampling="fps", fps=2, where="x").frames) == 4
    with pytest.raises(ConfigError, match="fps"):
        decode_video(data, num_frames=4, sampling="fps", where="x")


def test_keyframe_sampling_takes_key_frames_only():
    clip = decode_video(make_clip(gop=10), num_frames=5, sampling="keyframes", where="x")
    assert [number(frame) for frame in clip.frames] == [0, 10, 20, 30, 40]


def test_a_clip_without_time_stamps_is_numbered_by_decoding():
    """A raw MPEG-4 stream carries no stamps at all."""
    clip = decode_video(make_clip(fmt="m4v", codec="mpeg4", b_frames=0), num_frames=3, where="x")
    assert [number(frame) for frame in clip.frames] == [0, 24, 49]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_corrupted_file_is_a_data_error(backend, shared_data):
    data = (shared_data / "video" / "corrupted.mp4").read_bytes()
    with pytest.raises(DataError, match="corrupted.mp4"):
        decode_video(data, num_frames=8, backend=backend, where="corrupted.mp4")


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("fmt", ["mp4", "matroska"])
def test_a_clip_without_its_key_frame_is_a_data_error(backend, fmt):
    with pytest.raises(DataError):
        decode_video(make_clip(gop=100, drop=(0,), fmt=fmt), num_frames=4, backend=backend, where="x")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_truncated_clip_is_not_taken_for_a_shorter_one(backend):
    data = make_clip(fmt="matroska")
    with pytest.raises(DataError):
        decode_video(data[: len(data) * 2 // 3], num_frames=4, backend=backend, where="x")


@pytest.mark.parametrize("data", [b"", b"x" * 5000, b"\x00\x00\x00\x18ftypmp42"])
def test_what_is_no_video_is_a_data_error(data):
    with pytest.raises(DataError, match="key k1"):
        decode_video(data, num_frames=2, where="key k1")


def test_damage_never_raises_anything_but_a_data_error():
    data = make_clip()
    for seed in range(60):
        noise, damaged = random.Random(seed), bytearray(data)
        start = noise.randrange(len(data))
        damaged[start : start + noise.choice([1, 16, 500])] = noise.randbytes(noise.choice([0, 1, 16]))
        try:
            decode_video(bytes(damaged), num_frames=4, where="x")
        except DataError:
            pass


def test_pictures_that_the_decoder_patched_up_are_refused():
    """64 bytes of noise inside the coded pictures of a textured clip, 40 times.

    FFmpeg conceals such damage and says so in a flag: with the flag ignored 95% come back as wrong pictures. Some
    damage parses as another valid picture, which no decoder can tell.
    """
    texture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    data = make_clip(12, gop=60, b_frames=0, still=texture)
    start, refused = data.index(b"mdat") + 800, 0
    for seed in range(40):
        noise, damaged = random.Random(seed), bytearray(data)
        at = noise.randrange(start, start + 4000)
        damaged[at : at + 64] = noise.randbytes(64)
        try:
            decode_video(bytes(damaged), num_frames=6, where="x")
        except DataError:
            refused += 1
    assert refused >= 20


class _InWorker:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> list[int]:
        clip = decode_video(self.data, num_frames=3, backend="decord", where="x")
        return [number(frame) for frame in clip.frames]


@pytest.mark.skipif(not has_decord() or not hasattr(os, "fork"), reason="no decord or no fork")
def test_decord_works_in_a_forked_worker_after_use_in_the_parent():
    """A decord reader that crosses a fork hangs; ours lives for one call, so nothing crosses."""
    dataset = _InWorker(make_clip())
    assert dataset[0] == [0, 24, 49]
    loader = DataLoader(dataset, batch_size=None, num_workers=1, timeout=20, multiprocessing_context="fork")
    assert list(loader) == [[0, 24, 49]] * 2


def png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


def test_a_folder_of_frames_follows_the_same_rule():
    images = [png(picture(index)) for index in range(10)]
    clip = decode_frames(images, num_frames=4, where="x")
    assert [number(frame) for frame in clip.frames] == sample_indices(10, 4).tolist()
    # one frame a second: half a frame a second are five of ten
    assert len(decode_frames(images, num_frames=9, sampling="fps", fps=0.5, where="x").frames) == 5
    with pytest.raises(DataError, match="at least one frame"):
        decode_frames([], num_frames=4, where="x")
    with pytest.raises(ConfigError, match="no key frames"):
        decode_frames(images, num_frames=4, sampling="keyframes", where="x")


SAMPLINGS = [{}, {"sampling": "fps", "fps": 2.0}, {"sampling": "keyframes"}]


@pytest.mark.parametrize("how", SAMPLINGS, ids=lambda how: how.get("sampling", "uniform"))
def test_frames_that_were_packed_are_those_that_the_file_gives(how):
    """The same frames at the same times, whether a video was packed as a file or as frames."""
    clip = decode_video(make_clip(gop=10), num_frames=7, **how, where="x")
    packed = frames_record(clip, how.get("sampling", "uniform"), how.get("fps"))
    again = decode_frames([png(frame) for frame in clip.frames], num_frames=7, packed=packed, **how, where="x")
    assert np.array_equal(again.frames, clip.frames)
    np.testing.assert_allclose(again.timestamps, clip.timestamps, atol=1e-6)
    assert (again.total_frames, round(again.duration, 6)) == (clip.total_frames, round(clip.duration, 6))


def test_frames_that_were_packed_in_another_way_are_refused():
    clip = decode_video(make_clip(), num_frames=4, where="x")
    images, packed = [png(frame) for frame in clip.frames], frames_record(clip, "uniform", None)
    assert len(decode_frames(images, num_frames=2, packed=packed, where="x").frames) == 2
    for wanted in ({"num_frames": 5}, {"num_frames": 4, "sampling": "fps", "fps": 1.0}):
        with pytest.raises(ConfigError, match="packed as frames"):
            decode_frames(images, **wanted, packed=packed, where="x")
    with pytest.raises(DataError, match="not those that were packed"):
        decode_frames(images[1:], num_frames=4, packed=packed, where="x")


def test_work_without_end_is_a_data_error(monkeypatch):
    """The limit is processor time: a machine that stands still breaks no clip."""
    data = make_clip()
    monkeypatch.setattr(isolation, "_inside", True)  # so that the clock below is the one that is asked
    ticks = iter(range(0, 100_000, 40))
    monkeypatch.setattr("mmrlhf.media.headers.time.thread_time", lambda: next(ticks))
    with pytest.raises(DataError, match="longer than 120 s of work"):
        decode_video(data, num_frames=4, where="key k1")
    with pytest.raises(DataError, match="longer than 1 s"):
        Deadline(1, "x").check()


@pytest.mark.parametrize(
    ("call", "words"),
    [(calls_that_fail.crash_with, "its decoder crashed"), (calls_that_fail.hang_with, "its decoder took longer")],
)
def test_a_crash_or_hang_of_a_decoder_is_a_data_error(monkeypatch, call, words):
    """Of any back end, and no matter what it is asked for; the next clip is read as if nothing had been."""
    data = make_clip(4)
    with monkeypatch.context() as patch:
        patch.setattr(video, "_sample", call)
        patch.setattr(video, "_probe", call)
        patch.setattr(video, "TIMEOUT", 0.2)
        with pytest.raises(DataError, match=words) as error:
            decode_video(data, num_frames=4, timeout=0.2, where="key k1")
        assert error.value.where == "key k1"
        with pytest.raises(DataError, match=words):
            probe_video(data, "key k1")
    assert probe_video(data, "key k1")[0] == len(decode_video(data, num_frames=4, where="key k1").frames) == 4


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match="back end"):
        decode_video(make_clip(2), num_frames=1, backend="torchcodec", where="x")  # pyright: ignore
    with pytest.raises(ConfigError, match="sampling"):
        decode_video(make_clip(2), num_frames=1, sampling="random", where="x")  # pyright: ignore
    with pytest.raises(ConfigError, match="at least one"):
        decode_video(make_clip(2), num_frames=0, where="x")
