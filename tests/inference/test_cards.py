"""Cards of models that anyone may have written: settings, or an error that names the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.inference.cards import trained_media, trained_model, trained_template
from mmrlhf.models.export import read_policy_card
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.weight_files import POLICY_FILE
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import CritiqueTemplate
from mmrlhf.training.model_card import base_model

CARD: dict[str, Any] = {"critique": "full", "instruction": "judge", "request": "{question} {response}", "closing": ""}
REQUESTS = [
    "", "{question}", "{question} {response} {other}", "{question.__class__} {response}", "{question[0]} {response}",
    "{question} {response:>999999999}", "{question!r} {response}", "{question} {response", "{0} {1}", "{} {}",
]  # fmt: skip


def test_what_a_card_says() -> None:
    assert trained_template(CARD, "f") == CritiqueTemplate("full", "judge", request="{question} {response}")
    assert trained_media({"media": {"num_frames": 3}}, "f") == MediaSettings(num_frames=3)
    assert trained_media({}, "f") == MediaSettings() and trained_model({}, ModelSettings(), "f") == ModelSettings()
    assert trained_model({"precision": "bf16"}, ModelSettings(), "f").precision == "bf16"


@pytest.mark.parametrize(
    "change",
    [{"critique": "loud"}, {"critique": None}, {"critique": []}, {"instruction": 3}, {"instruction": None},
     {"closing": ["a"]}, *({"request": request} for request in (*REQUESTS, None, 5))],
    ids=str,
)  # fmt: skip
def test_a_card_that_asks_nothing(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="folder-x"):
        trained_template(CARD | change, "folder-x")


@pytest.mark.parametrize("name", ["critique", "instruction"])
def test_a_card_that_lacks_a_field(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        trained_template({field: value for field, value in CARD.items() if field != name}, "folder-x")


@pytest.mark.parametrize(
    "media", [3, "a", [1], None, {"frames": 3}, {"num_frames": 0}, {"num_frames": "3"}, {"sampling": []}, {"fps": -1}],
    ids=str,
)  # fmt: skip
def test_a_card_of_no_media(media: object) -> None:
    with pytest.raises(ModelError, match="folder-x"):
        trained_media({"media": media}, "folder-x")


@pytest.mark.parametrize("precision", ["float8", 3, None, []], ids=str)
def test_a_card_of_no_precision(precision: object) -> None:
    with pytest.raises(ModelError, match="folder-x"):
        trained_model({"precision": precision}, ModelSettings(), "folder-x")


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_of_ones_own_shows_question_and_response(request_: str) -> None:
    """A misspelt name would end the first query; an attribute, an index or a width are nobody's wish."""
    with pytest.raises(ConfigError, match="question and response"):
        CritiqueTemplate(request=request_)
    assert CritiqueTemplate(request="{{x}} {response} {question} {response}")


@pytest.mark.parametrize("content", ["{", "[]", "3", "[" * 100_000, "\udcff"], ids=lambda text: text[:9])
def test_a_policys_card_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / POLICY_FILE).write_bytes(content.encode(errors="surrogateescape"))
    for read in (read_policy_card, base_model):
        with pytest.raises(ModelError, match=POLICY_FILE):
            read(tmp_path)


def test_a_base_that_is_no_name(tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).write_text(json.dumps({"base": ["a/b"]}))
    assert base_model(tmp_path) is None
