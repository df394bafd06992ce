"""Write and read a reward model's folder, and the head that training starts with.

It is a policy's folder (`mmrlhf.models.export`) with `score_head.safetensors` and `reward_model.json` (head, template,
settings); a missing or unfitting head is an error, never a fresh one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ProcessorMixin

from mmrlhf.errors import ModelError
from mmrlhf.models.export import check_finite, room_for, save_policy
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import HeadSettings, ScoreHead, build_head
from mmrlhf.models.hub import file_beside
from mmrlhf.models.load import load_backbone
from mmrlhf.models.promises import CARD_FILE, HEAD_FILE, check_reward_folder, read_card
from mmrlhf.models.settings import ModelSettings

log = logging.getLogger(__name__)


def save_reward_model(
    model: PackedModel,
    processor: ProcessorMixin,
    folder: str | Path,
    *,
    card: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    as_adapters: bool = False,
) -> None:
    """Write a reward model: the backbone's folder, the score head (float32), and a card that says how it is asked.

    Args:
        card: JSON-able facts needed to ask it again (critique kind, instruction, media settings).
        state, dtype, base, as_adapters: as of `save_policy`, which also says what is raised.
    """
    head = model.score_head
    if not isinstance(head, ScoreHead):
        raise ModelError("this model has no score head to save")
    save_policy(model, processor, folder, state=state, dtype=dtype, base=base, as_adapters=as_adapters)
    full = state if state is not None else model.state_dict()
    prefix = "score_head."
    weights = {name[len(prefix) :]: value.contiguous() for name, value in full.items() if name.startswith(prefix)}
    check_finite(weights, "float32")
    facts = {"head": head.kind, "width": head.out.in_features, "dimensions": list(head.dimensions), **card}
    with room_for(Path(folder), weights):
        save_file(weights, Path(folder) / HEAD_FILE)
        (Path(folder) / CARD_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    check_reward_folder(folder, dtype=dtype)


def load_reward_model(
    folder: str | Path, settings: ModelSettings
) -> tuple[PackedModel, ProcessorMixin, dict[str, Any]]:
    """Read a reward model from its folder or by its hub id: model with its trained head, processor, and the card.

    Raises:
        ModelError: where the head or its card is missing or does not fit, or the model's own weights do not.
    """
    card = read_card(folder)
    backbone, processor = load_backbone(folder, settings)
    head = load_head(folder, card, width=backbone.config.get_text_config().hidden_size)
    return PackedModel(backbone, settings, head), processor, card


def load_head(folder: str | Path, card: Mapping[str, Any], *, width: int) -> ScoreHead:
    """Read a reward model's trained score head for hidden states of a width; ModelError where it does not fit."""
    file = file_beside(folder, HEAD_FILE)
    assert file is not None, "whoever has read the card has seen the head"
    if card["width"] != width:
        raise ModelError(
            "the score head does not fit the model beside it",
            where=file.with_name(CARD_FILE),
            given=f"a head for width {card['width']}",
            expected=f"width {width}, as the model's hidden states have",
        )
    head = build_head(card["head"], card["width"], dimensions=card["dimensions"])
    try:
        head.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ModelError("the score head does not fit its card", where=str(folder), given=str(error)) from error
    check_finite(head.state_dict(), "float32")
    return head


def starting_head(settings: HeadSettings, checkpoint: str | Path, width: int) -> ScoreHead:
    """The head that training starts with: the checkpoint's own where it has one, else a fresh one; the log says which.

    Args:
        checkpoint: folder or hub id that the backbone comes from; width: of its hidden states.

    Raises:
        ModelError: the checkpoint's head is damaged, or of another kind or other dimensions than the settings'.
    """
    trained = any(file_beside(checkpoint, name) is not None for name in (CARD_FILE, HEAD_FILE))
    if settings.fresh or not trained:
        why = "as head.fresh asks; the trained one is left out" if trained else "as the checkpoint has none"
        log.info("%s: the score head starts fresh, %s", checkpoint, why)
        return settings.build(width)
    card = read_card(checkpoint)
    if (card["head"], tuple(card["dimensions"])) != (settings.kind, tuple(settings.dimensions)):
        raise ModelError(
            "this checkpoint has a trained score head of another kind than the one that is to be trained",
            where=f"{CARD_FILE} of {checkpoint}",
            given=f"kind {card['head']}, dimensions {card['dimensions']}",
            expected=f"kind {settings.kind}, dimensions {list(settings.dimensions)}",
            fix=f"model.head={card['head']} with its dimensions goes on with it; "
            "stages.reward.head.fresh=true begins with a new one",
        )
    log.info("%s: its trained score head is trained further", checkpoint)
    head = load_head(checkpoint, card, width=width)
    head.dropout.p = settings.dropout
    return head
