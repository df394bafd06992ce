"""What a model's folder promises, checked without holding its weights: before it is published, and before it is used.

`check_policy_folder` and `check_reward_folder` are for whoever publishes an artefact: they raise, or return nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from mmrlhf.errors import ModelError
from mmrlhf.models.heads import HEADS, build_head
from mmrlhf.models.hub import file_beside
from mmrlhf.models.load import check_folder, load_config
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.weight_files import StoredTensor, is_adapter_folder, read_header, read_headers, read_json, some

HEAD_FILE = "score_head.safetensors"
CARD_FILE = "reward_model.json"
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def check_policy_folder(folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Make sure that a folder holds a whole model: every tensor of its config by name and shape, and its processor.

    Args:
        dtype: number type that every floating tensor must have; None: any.

    Raises:
        ModelError: names what is missing or different.
    """
    folder = Path(folder)
    check_folder(folder, ModelSettings())
    if dtype is not None and not is_adapter_folder(folder):
        other = [name for name, tensor in read_headers(folder).items() if _is_other(tensor, _NAMES[dtype])]
        if other:
            raise ModelError(
                "tensors of another number type than the model's", where=folder, given=some(other), expected=str(dtype)
            )


def check_reward_folder(folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """As `check_policy_folder`, and that a trained score head of the model's width and a card lie beside the model."""
    folder = Path(folder)
    card = read_card(folder)
    check_policy_folder(folder, dtype=dtype)
    width = load_config(folder).get_text_config().hidden_size
    with torch.device("meta"):
        head = build_head(card["head"], width, dimensions=card["dimensions"])
    wanted = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    found = {name: tensor.shape for name, tensor in read_header(folder / HEAD_FILE).items()}
    if wanted != found or card["width"] != width:
        raise ModelError("the score head does not fit its card", where=folder, given=str(found), expected=str(wanted))


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read the card of a reward model, of its folder or by its hub id.

    Raises:
        ModelError: no card or no head there, or a card that does not say which head it is.
    """
    found = {name: file_beside(folder, name) for name in (CARD_FILE, HEAD_FILE)}
    for name, file in found.items():
        if file is None:
            raise ModelError(
                "this folder holds no trained score head",
                where=str(folder),
                given=f"no {name}",
                expected="a folder written by the reward stage",
                fix="train one (`python run.py stage=reward`), or give another inputs.reward_model",
            )
    place = cast(Path, found[CARD_FILE])
    card = read_json(place)
    kind, width, dimensions = card.get("head"), card.get("width"), card.get("dimensions", [])
    named = isinstance(dimensions, list) and all(isinstance(name, str) for name in dimensions)
    named = named and len(set(dimensions)) == len(dimensions)
    if kind not in HEADS or not isinstance(width, int) or not named:
        raise ModelError(
            "this card does not say which score head lies beside it",
            where=place,
            given=f"head={kind!r}, width={width!r}, dimensions={dimensions!r}",
            expected=f"head: one of {', '.join(HEADS)}; width: a number; dimensions: a list of names, each once",
            fix="copy the card again from where the model was trained",
        )
    return {**card, "dimensions": dimensions}


def _is_other(tensor: StoredTensor, name: str) -> bool:
    return tensor.dtype in ("F64", *_NAMES.values()) and tensor.dtype != name
