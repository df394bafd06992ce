"""What a processor is told about media: the real times of frames, and pixels as the settings say."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.clips import make_clip
from stand_ins.tiny_models import AVAILABLE, responses
from transformers.image_utils import load_image
from transformers.video_utils import VideoMetadata

from mmrlhf.media.video import decode_video, frames_record
from mmrlhf.models.families import positions_for
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.processing import MediaSettings, decode_media
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.types import Media, PreferenceGroup

TENTHS = [0, 1, 3, 4, 27, 28, 83, 131]
EVEN = [5 * i for i in range(8)]


def clip_group(stamps: list[int]) -> PreferenceGroup:
    data = make_clip(len(stamps), stamps=stamps, b_frames=0, fmt="matroska")
    return PreferenceGroup("k", "what ?", responses("a red circle", "b"), (Media("video", ("0.mkv",), (data,)),))


def encoder_for(folder: Path, **media: Any) -> tuple[Encoder, Any]:
    backbone, processor = load_backbone(folder, ModelSettings())
    settings = MediaSettings(num_frames=8, **media)
    return Encoder(processor, template=AnswerTemplate(), positions=positions_for(backbone), media=settings), backbone


def told_by_hand(
    encoder: Encoder, group: PreferenceGroup, stamps: list[int], **changes: Any
) -> dict[str, torch.Tensor]:
    """The stock processor's tensors of a group's question, given metadata in the clip's own tenths of a second."""
    clip = decode_video(group.media[0].data[0], num_frames=len(stamps), where="k")
    true = VideoMetadata(
        total_num_frames=stamps[-1] + 1, fps=10.0, frames_indices=list(stamps), duration=clip.duration
    )  # fmt: skip
    for name, value in changes.items():
        setattr(true, name, value)
    return encoder.processor(
        text=[encoder.chat.prompt(group.prompt)], videos=[[clip.frames]], return_tensors="pt",
        videos_kwargs={"do_sample_frames": False, "video_metadata": [true]},
    )  # fmt: skip


@pytest.mark.parametrize("stamps", [TENTHS, EVEN], ids=["variable", "even"])
@pytest.mark.parametrize("family", sorted({"qwen3_vl", "smolvlm"} & set(AVAILABLE)))
def test_a_family_that_writes_times_writes_the_real_ones(
    family: str, stamps: list[int], tiny_folders: dict[str, Path]
) -> None:
    encoder, _ = encoder_for(tiny_folders[family])
    group = clip_group(stamps)
    own, _ = encoder.stock_inputs(group, group.responses[0], with_answer=False)
    assert torch.equal(own["input_ids"], told_by_hand(encoder, group, stamps)["input_ids"])
    if family == "qwen3_vl":
        text = encoder.tokenizer.decode(own["input_ids"][0]).replace(" ", "")
        means = [(stamps[i] + stamps[i + 1]) / 20 for i in range(0, 8, 2)]
        assert all(f"<{mean:.1f}seconds>" in text for mean in means)


def test_frames_that_were_packed_keep_the_times_of_their_clip(tiny_folders: dict[str, Path]) -> None:
    encoder, _ = encoder_for(tiny_folders["qwen3_vl"])
    group = clip_group(TENTHS)
    clip = decode_video(group.media[0].data[0], num_frames=8, where="k")
    files = []
    for frame in clip.frames:
        Image.fromarray(frame).save(buffer := io.BytesIO(), "PNG")
        files.append(buffer.getvalue())
    frames = Media("frames", tuple(f"f{i:03d}.png" for i in range(8)), tuple(files))
    packed = replace(group, media=(frames,), meta={"video": frames_record(clip, "uniform", None)})
    tokens = [encoder.stock_inputs(each, group.responses[0])[0]["input_ids"] for each in (group, packed)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("stamps", [TENTHS, EVEN], ids=["variable", "even"])
def test_a_family_of_one_rate_is_told_the_even_one(stamps: list[int], tiny_folders: dict[str, Path]) -> None:
    encoder, backbone = encoder_for(tiny_folders["qwen2_5_vl"])
    group = clip_group(stamps)
    encoded = encoder(group)
    rate = 70 / stamps[-1]
    hand = told_by_hand(encoder, group, stamps, fps=rate, total_num_frames=8)
    torch.testing.assert_close(encoded.media["second_per_grid_ts"], torch.as_tensor(hand["second_per_grid_ts"]))
    grids = {name: value for name, value in hand.items() if "grid" in name or name == "mm_token_type_ids"}
    stock, _ = backbone.model.get_rope_index(hand["input_ids"], **grids)
    assert torch.equal(encoded.prefix_positions, stock[:, 0, : encoded.prefix_positions.shape[1]])
    assert len(encoded.prefix_ids) == hand["input_ids"].shape[1]


def test_alpha_is_dropped_as_transformers_drops_it(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    picture = PreferenceGroup("k", "what ?", responses("a", "b"), (Media("image", ("0.png",), (data,)),))
    frames = replace(picture, media=(Media("frames", ("f000.png", "f001.png"), (data, data)),))
    theirs = np.asarray(load_image(str(tmp_path / "a.png")))
    dropped, white = MediaSettings(num_frames=2, alpha="drop"), MediaSettings(num_frames=2)
    assert np.array_equal(np.asarray(decode_media(picture, dropped).images[0]), theirs)
    assert np.array_equal(decode_media(frames, dropped).clips[0].frames[1], theirs)
    opaque = pixels[..., 3:] / 255
    on_white = pixels[..., :3] * opaque + 255 * (1 - opaque)
    assert np.abs(np.asarray(decode_media(picture, white).images[0]) - on_white).max() <= 1
    assert np.abs(decode_media(frames, white).clips[0].frames[0] - on_white).max() <= 1
    encoders = [encoder_for(tiny_folders["qwen2_vl"], alpha=alpha)[0] for alpha in ("drop", "white")]
    seen = [encoder(picture).media["pixel_values"] for encoder in encoders]
    assert not torch.allclose(*seen)
