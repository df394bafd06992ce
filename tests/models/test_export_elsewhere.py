"""An exported policy is one that others load: transformers' own pipeline and its server answer as the model does."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.built_models import build
from stand_ins.tiny_models import AVAILABLE
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils.import_utils import is_serve_available

from mmrlhf.models.export import save_policy

MANY = 12
# transformers' server answers with at least this many seconds of patience on a busy machine
PATIENCE = 120.0


def _picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 255, (32, 48, 3), dtype=np.uint8))


def _messages(**picture: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [picture, {"type": "text", "text": "what is the colour"}]}]


def _exported(folder: Path, out: Path) -> Path:
    """A policy whose weights are no longer those it began with, exported."""
    model, encoder = build(folder)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_policy(model.eval(), encoder.processor, out)
    return out


def _said(folder: Path) -> str:
    """What the stock classes answer."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        _messages(type="image", image=_picture()), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    written = model.generate(**inputs, max_new_tokens=MANY, do_sample=False)
    return processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", AVAILABLE)
def test_the_stock_pipeline_answers_as_the_stock_classes_do(
    family: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = _exported(tiny_folders[family], tmp_path / "policy")
    pipe = pipeline("image-text-to-text", model=str(folder), device="cpu")
    (found,) = pipe(
        text=_messages(type="image", image=_picture()), return_full_text=False,
        generate_kwargs={"max_new_tokens": MANY, "do_sample": False},
    )  # fmt: skip
    assert found["generated_text"] == _said(folder) != ""


@pytest.fixture
def server(tiny_folders: dict[str, Path], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """`transformers serve` over an exported folder, without any network."""
    if not is_serve_available():
        pytest.skip("`transformers serve` needs fastapi, uvicorn, pydantic and openai")
    folder = _exported(tiny_folders["llava_onevision"], tmp_path / "policy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"no answer within {PATIENCE:g} s: {log.read_text(errors='replace')}")


@pytest.mark.slow
def test_the_stock_server_answers_a_chat_completion_with_a_picture(server: tuple[str, Path]) -> None:
    url, folder = server
    buffer = io.BytesIO()
    _picture().save(buffer, "PNG")
    shown = {"url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
    request = {
        "model": str(folder), "messages": _messages(type="image_url", image_url=shown), "max_tokens": MANY,
        "temperature": 0.0, "stream": False,
    }  # fmt: skip
    response = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=PATIENCE)
    assert response.is_success, response.text
    assert response.json()["choices"][0]["message"]["content"] == _said(folder) != ""
