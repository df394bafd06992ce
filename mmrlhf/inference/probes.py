"""A model's encoder, and small ragged queries that a model is asked before it is used: can it read packed rows?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mmrlhf.conversation import IMAGE, Conversation
from mmrlhf.media.damage import Damage
from mmrlhf.models.attention import require_in_turn
from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import context_length
from mmrlhf.models.random_checkpoints import FAMILIES
from mmrlhf.models.selfcheck import settle_layout
from mmrlhf.tensors import PackedBatch
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.in_turn import Reading
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import AnswerTemplate, Template
from mmrlhf.types import Media, PreferenceGroup, Response

_ANSWERS = ("yes", "two red circles and a small blue square", "it is hard to say what this shows")
_QUESTION = "what can be seen here ?"
_PIXELS = 64


def encoder_of(
    model: PackedModel,
    processor: Any,
    *,
    template: Template,
    media: MediaSettings,
    room: int = 0,
    damage: Damage | None = None,
    dimensions: Sequence[str] = (),
    reading: Reading = "apart",
) -> Encoder:
    """The encoder of a model, by its family, its settings and its context, once the model has shown what it reads.

    Arguments as those of `Encoder`; raises as `settle`, ModelError where the context is not known, and ConfigError for
    responses that are read in turn by attention that cannot.
    """
    settings = model.settings
    require_in_turn(reading, settings)
    encoder = Encoder(
        processor,
        template=template,
        positions=positions_for(model.backbone),
        media=media,
        max_tokens=context_length(settings, model.backbone.config),
        too_long=settings.too_long,
        room=room,
        damage=damage,
        dimensions=dimensions,
        reading=reading,
    )
    settle(model, encoder)
    return encoder


def settle(model: PackedModel, encoder: Encoder) -> PackedModel:
    """Let a model show that it reads packed rows, or have it run single rows (`settings.layout`); returns the model.

    Families that the equivalence tests cover are asked with text alone, which costs a few dozen tokens; others also
    with a picture.

    Raises:
        ModelError: `layout=packed` was asked for and the model cannot.
    """
    if model.settings.layout != "rows":
        known = model.backbone.config.model_type in FAMILIES
        settle_layout(model, _probes(encoder, with_picture=not known))
    return model


def _probes(encoder: Encoder, *, with_picture: bool) -> list[PackedBatch]:
    """Two text queries in one row and, if wanted, one with a picture in another; 3 and 2 answers."""
    plain = Encoder(
        encoder.processor, template=AnswerTemplate(), positions=encoder.positions, media=MediaSettings(num_frames=2)
    )
    responses = tuple(Response(text, rank=rank) for rank, text in enumerate(_ANSWERS, 1))
    text = PreferenceGroup("probe", Conversation.about(_QUESTION), responses)
    short = PreferenceGroup("short", Conversation.about("and ?"), responses[:2])
    rows = [pack_groups([plain(text), plain(short)])]
    if with_picture:
        picture = PreferenceGroup("picture", Conversation.about(_QUESTION, [IMAGE]), responses, (_picture(),))
        rows.append(pack_groups([plain(picture), plain(short)]))
    return rows


def _picture() -> Media:
    gradient = Image.linear_gradient("L").resize((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).save(buffer, "PNG")
    return Media("image", ("0.png",), (buffer.getvalue(),))
