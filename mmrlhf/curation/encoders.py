"""Encoders of pictures and texts into one space (CLIP, SigLIP and relatives), through transformers' own classes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from mmrlhf.errors import ModelError
from mmrlhf.models.hub import hub_errors
from mmrlhf.models.load import load_config
from mmrlhf.models.loading_info import check_loading
from mmrlhf.models.processors import UNREADABLE
from mmrlhf.models.weight_files import read_headers
from mmrlhf.text import first_line

Precision = Literal["float32", "bf16"]
_LONGEST = 64  # tokens of a text, where the model does not say


class Encoder:
    """A model with `get_image_features` and `get_text_features`, and its processor; `dim` numbers for each.

    Args:
        path: folder or hub id.
        device: where it runs.
        precision: of its products; `bf16` moves a cosine by up to .003, which matters near thresholds.
        name: what it is called in records, where that is not its path.

    Raises:
        HubError: it cannot be fetched.
        ModelError: no checkpoint, one without features of pictures or without a processor for them, or weights that are
            not exactly its model's.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        name: str | None = None,
    ) -> None:
        self.path, self.device = name or str(path), torch.device(device)
        self.config = load_config(path)
        self._model = _load_model(path)
        for method in ("get_image_features", "get_text_features"):
            if not callable(getattr(self._model, method, None)):
                raise ModelError(
                    "this encoder has no features of pictures and texts in one space",
                    where=self.path,
                    given=f"{type(self._model).__name__}, without {method}",
                    expected="a model such as CLIP or SigLIP, with get_image_features and get_text_features",
                    fix="name such a checkpoint: stages.query_features.encoder=openai/clip-vit-base-patch32",
                )
        self._processor = _load_processor(path)
        self.fingerprint = self._checksum()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = self._model.to(self.device, dtype).eval()
        self._dtype = dtype
        self._longest = self._longest_text()
        self.dim = self.pictures([Image.new("RGB", (32, 32), "grey")]).shape[-1]

    def facts(self) -> dict[str, Any]:
        """What decides the features, for a record of what made them."""
        return {"encoder": self.path, "model": self.config.model_type, "weights": self.fingerprint, "dim": self.dim,
                "dtype": str(self._dtype)}  # fmt: skip

    @torch.inference_mode()
    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """Features (n, dim) float32 on the CPU, as the model gives them."""
        pixels = self._processor(images=list(images), return_tensors="pt").to(self.device)
        given = {name: _cast(value, self._dtype) for name, value in pixels.items()}
        return _features(self._model.get_image_features(**given))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Features (n, dim) float32 on the CPU, and how many of the texts were longer than the model reads."""
        tokenizer = self._processor.tokenizer
        whole = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        padding = "max_length" if self.config.model_type.startswith("siglip") else True  # as SigLIP was trained
        tokens = tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self.device)
        cut = sum(len(ids) > self._longest for ids in whole)
        return _features(self._model.get_text_features(**tokens)), cut

    def _longest_text(self) -> int:
        text = getattr(self.config, "text_config", self.config)
        positions = getattr(text, "max_position_embeddings", None)
        return positions if isinstance(positions, int) and positions > 0 else _LONGEST

    def _checksum(self) -> str:
        """CRC-32 over all weights: a folder whose content has changed is another encoder."""
        found = 0
        for _, value in sorted(self._model.state_dict().items()):
            found = zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), found)
        return f"{found:08x}"


def _load_model(path: str | Path) -> Any:
    if Path(path).is_dir():
        read_headers(Path(path))
    try:
        with hub_errors(str(path)):
            loaded: Any = AutoModel.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
                use_safetensors=True, trust_remote_code=False,
            )  # fmt: skip
    except UNREADABLE as error:
        if isinstance(error, ModelError):
            raise
        raise _not_loaded(path, error) from error
    model, info = loaded
    check_loading(info, total=len(model.state_dict()), model=type(model).__name__, where=path)
    return model


def _load_processor(path: str | Path) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        parts = processor.image_processor, processor.tokenizer
    except UNREADABLE as error:
        raise _not_loaded(path, error) from error
    if None in parts:
        raise _not_loaded(path, TypeError(f"{type(processor).__name__} has no tokenizer or no image processor"))
    return processor


def _not_loaded(path: str | Path, error: Exception) -> ModelError:
    return ModelError(
        "this encoder cannot be loaded",
        where=str(path),
        given=f"{type(error).__name__}: {first_line(error)}",
        expected="config.json, safetensors, tokenizer and image processor of a transformers model",
    )


def _features(output: Any) -> Tensor:
    """What a model returns, an object or (transformers before 5) a tensor, as (n, dim)."""
    found = output if isinstance(output, Tensor) else output.pooler_output
    return found.float().cpu()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
