"""Sample tables: one row per response, pictures included, through an offline W&B run."""

from __future__ import annotations

import json
import math

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from mmrlhf.callbacks.samples import COLUMNS, build_table, filmstrip, log_samples

SAMPLES = [
    {
        "key": "a1",
        "category": "long",
        "prompt": "What is drawn? <b>",
        "image": Image.new("RGB", (48, 48), "red"),
        "responses": [
            {"text": "a circle", "rank": 2, "reward": -0.5, "beta": 0.13},
            {"text": "a square", "rank": 1, "reward": 0.75, "critique": "All claims hold.", "quality": 1.0},
        ],
        "generation_before": "a circle",
        "generation_after": "a square",
    },
    {"key": "v1", "category": "video", "prompt": "Which moves?", "image": None, "responses": []},
]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    logger = WandbLogger(project="test", save_dir=str(tmp_path), offline=True)
    yield logger
    wandb.finish()


def test_one_row_per_response_best_first():
    table = build_table([{**sample, "image": None} for sample in SAMPLES])
    assert table.columns == list(COLUMNS)
    assert [row[0] for row in table.data] == ["a1", "a1", "v1"]
    assert [row[COLUMNS.index("text")] for row in table.data] == ["a square", "a circle", None]
    assert table.data[0][COLUMNS.index("reward")] == 0.75


def test_unknown_ranks_go_last():
    responses = [{"text": "c", "rank": math.nan}, {"text": "b", "rank": None}, {"text": "a", "rank": 3.0}]
    rows = build_table([{"responses": responses}]).data
    assert rows[0][COLUMNS.index("text")] == "a"


def test_filmstrip_keeps_the_order():
    frames = [Image.new("RGB", (10, 8), "red"), Image.new("RGB", (20, 16), "blue")]
    strip = filmstrip(frames, gap=2)
    assert strip.size == (22, 8)
    assert strip.getpixel((5, 4)) == (255, 0, 0) and strip.getpixel((17, 4)) == (0, 0, 255)


def test_without_wandb_nothing_is_logged():
    assert log_samples([], SAMPLES) is False


def test_tables_reach_an_offline_run(tmp_path, offline):
    for step in (2, 4, 5):
        assert log_samples([offline], SAMPLES, step=step)
    wandb.finish()
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/table/*.json"))) == 3
    staged = [path.read_bytes() for path in (tmp_path / "staged").rglob("*") if path.is_file()]
    assert any(content.startswith(b"\x89PNG") for content in staged), "the picture itself waits for the upload"
    tables = [json.loads(content) for content in staged if content.startswith(b"{")]
    table = next(table for table in tables if table.get("columns") == list(COLUMNS))
    assert len(table["data"]) == 3 and table["data"][0][COLUMNS.index("picture")]["_type"] == "image-file"
