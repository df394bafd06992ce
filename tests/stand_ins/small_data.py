"""Fixtures: a handful of drawn queries as shards, and tiny models to ask (policies, reward models of both kinds)."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from mmrlhf.chain.runtime import Runtime
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.load import load_backbone
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.reward_folder import save_reward_model
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media, PreferenceGroup, Response

WORDS = ["red", "blue", "green", "yellow", "circle", "square", "left", "right", "above", "picture", "no", "yes"]


def text(rng: np.random.Generator, length: int) -> str:
    return " ".join(rng.choice(WORDS, size=length))


def picture(rng: np.random.Generator, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def draw_group(number: int) -> PreferenceGroup:
    """Query `number`: K of 2 to 4 responses of different lengths, an image in most, ranks with ties, true qualities."""
    rng = np.random.default_rng(number)
    count = int(rng.integers(2, 5))
    quality = [int(value) for value in rng.integers(0, 4, count)]
    responses = tuple(
        Response(
            f"{text(rng, int(rng.integers(1, 9)))} {place}",
            rank=1 + sum(other > value for other in quality),
            critiques={"full": text(rng, 4), "short": text(rng, 2)},
        )
        for place, value in enumerate(quality)
    )
    media = () if number % 5 == 0 else (Media("image", ("0.png",), (picture(rng, 56, 56),)),)
    return PreferenceGroup(
        key=f"query-{number}",
        prompt=text(rng, 5),
        responses=responses,
        media=media,
        category=("long", "short")[number % 2],
        meta={"quality": quality, "wanted": WORDS[number % len(WORDS)]},
    )


def wanted_word(meta: dict, answer: str) -> float:
    """A judge: does the answer contain the word that the query wants?"""
    return float(meta["wanted"] in answer)


@pytest.fixture(scope="session")
def small_groups() -> list[PreferenceGroup]:
    return [draw_group(number) for number in range(14)]


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory, small_groups: list[PreferenceGroup]) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(small_groups, folder, max_groups_per_shard=5)
    return folder


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    build_tiny("llava_onevision", folder, texts=[" ".join(WORDS)] * 40, size=TinySize(crops=False))
    return folder


@pytest.fixture(scope="session")
def other_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other-policy")
    build_tiny("llava_onevision", folder, texts=[" ".join(WORDS)] * 40, size=TinySize(crops=False), seed=1)
    return folder


def build_reward_model(policy: Path, folder: Path, critique: str) -> Path:
    """A random reward model; its head is not left at zero, where all responses would score alike."""
    settings = ModelSettings()
    backbone, processor = load_backbone(policy, settings)
    head = build_head("linear", 64)
    torch.nn.init.normal_(head.out.weight, generator=torch.Generator().manual_seed(3))
    model = PackedModel(backbone, settings, head)
    save_reward_model(model, processor, folder, card={"critique": critique, "instruction": "judge :", "media": {}})
    return folder


@pytest.fixture(scope="session")
def critic(tmp_path_factory: pytest.TempPathFactory, small_policy: Path) -> Path:
    return build_reward_model(small_policy, tmp_path_factory.mktemp("critic"), "full")


@pytest.fixture(scope="session")
def scalar_model(tmp_path_factory: pytest.TempPathFactory, small_policy: Path) -> Path:
    return build_reward_model(small_policy, tmp_path_factory.mktemp("scalar"), "none")


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
