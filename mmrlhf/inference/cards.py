"""How a folder's model was trained to be asked, from its card, which may be anyone's: settings, or an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.models.settings import ModelSettings
from mmrlhf.text import first_line
from mmrlhf.tokens.in_turn import Reading
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import REQUEST, CritiqueTemplate


def trained_media(card: Mapping[str, Any], where: str | Path) -> MediaSettings:
    """How videos became frames, the defaults where the card does not say; raises ModelError."""
    with _read_from(where):
        return MediaSettings(**card.get("media", {}))


def trained_template(card: Mapping[str, Any], where: str | Path) -> CritiqueTemplate:
    """What a reward model was asked; raises ModelError."""
    with _read_from(where):
        return CritiqueTemplate(
            critique=card["critique"],
            instruction=card["instruction"],
            request=card.get("request", REQUEST),
            closing=card.get("closing", ""),
        )


def trained_reading(card: Mapping[str, Any], where: str | Path) -> Reading:
    """Whether responses are read apart or in turn, apart where the card does not say; raises ModelError."""
    reading = card.get("reading", "apart")
    with _read_from(where):
        if reading not in get_args(Reading):
            expected = f"one of {', '.join(get_args(Reading))}"
            raise ConfigError("unknown reading", argument="reading", given=reading, expected=expected)
    return reading


def trained_model(card: Mapping[str, Any], settings: ModelSettings, where: str | Path) -> ModelSettings:
    """The settings with the precision of training, where the card says; raises ModelError."""
    with _read_from(where):
        return replace(settings, precision=card.get("precision", settings.precision))


@contextmanager
def _read_from(where: str | Path) -> Iterator[None]:
    try:
        yield
    except (TypeError, KeyError, ConfigError) as error:
        given = f"{error.argument}={error.given!r}" if isinstance(error, ConfigError) else first_line(error)
        raise ModelError(
            "this model's card does not say how it is asked",
            where=str(where),
            given=f"{type(error).__name__}: {given}",
            expected="critique, instruction, request, closing, reading, media, precision, as training wrote them",
            fix="copy the card again from where the model was trained",
        ) from error
