"""Responders by name, from a mapping of settings: `NAME: {kind: local | endpoint | batch | stand_in, ...}`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf.chain.order import suggestion
from mmrlhf.endpoints.prices import Prices
from mmrlhf.errors import ConfigError, UserError
from mmrlhf.files import expanded
from mmrlhf.inference.settings import PassSettings
from mmrlhf.ranges import check_arguments
from mmrlhf.responders.asking import Answerer, AnswerSettings
from mmrlhf.responders.batch import BatchAnswerer
from mmrlhf.responders.checkpoint import CheckpointAnswerer
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.responders.stand_in import StandInAnswerer

_SERVICES: Mapping[str, type] = {"endpoint": EndpointAnswerer, "batch": BatchAnswerer, "stand_in": StandInAnswerer}
KINDS = ("local", *_SERVICES)
# in file names, in names of requests, and beside others in a table
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Responder:
    """Somebody who answers, by name, and how."""

    name: str
    answerer: Answerer
    how: AnswerSettings

    @property
    def prices(self) -> Prices | None:
        """Of its tokens; a model on this machine has none."""
        return getattr(self.answerer, "prices", None)


def named_responders(
    settings: Mapping[str, Mapping[str, Any]], how: AnswerSettings, passes: PassSettings
) -> list[Responder]:
    """Make responders of their settings.

    Each has `kind`, what its kind takes (`local`: `model`, a checkpoint; the others: the settings of `EndpointAnswerer`
    and `BatchAnswerer`), and any of `AnswerSettings` that shall be others than `how`.

    Args:
        passes: how checkpoints are asked, and how everybody is shown videos.

    Raises:
        ConfigError: names the key, `responders.NAME.KEY`.
    """
    if not settings:
        raise ConfigError(
            "nobody is named who could answer", where="responders", given="none",
            expected="responders.NAME.kind=KIND, with what that kind takes",
            fix="responders.big.kind=endpoint responders.big.url=http://HOST/v1 responders.big.model=NAME",
        )  # fmt: skip
    return [_responder(str(name), node, how, passes) for name, node in settings.items()]


def _responder(name: str, node: Any, how: AnswerSettings, passes: PassSettings) -> Responder:
    where = f"responders.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError("a responder cannot be called this", where="responders", given=name,
                          expected="letters, digits, `_`, `.` and `-`")  # fmt: skip
    if not isinstance(node, Mapping):
        raise ConfigError("a responder has settings", where=where, given=node, expected="kind: KIND, ...")
    given = {str(key): value for key, value in node.items()}
    kind = given.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError("there is no such kind of responder", where=f"{where}.kind", given=kind,
                          expected=f"one of {', '.join(KINDS)}", fix=suggestion(str(kind), KINDS))  # fmt: skip
    of_answers = {field.name for field in dataclasses.fields(AnswerSettings)}
    own = {key: given.pop(key) for key in list(given) if key in of_answers}
    try:
        check_arguments(AnswerSettings, own)
        answers = dataclasses.replace(how, **own)
        if kind == "local":
            _check_keys(where, given, required=("model",), accepted=("model",))
            _check_checkpoint(f"{where}.model", str(given["model"]))
            return Responder(name, CheckpointAnswerer(given["model"], passes), answers)
        return Responder(name, _service(where, _SERVICES[kind], given, passes), answers)
    except UserError as error:
        raise error.below(where) from error.__cause__


def _check_checkpoint(where: str, model: str) -> None:
    """Refuse a path that is not there; NAME and OWNER/NAME may be hub ids, and `stage:NAME` is still to be made."""
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if is_path and not model.startswith("stage:") and not expanded(model).is_dir():
        raise ConfigError("a checkpoint does not exist", where=where, given=model,
                          expected="a folder, a hub id, or stage:NAME/model")  # fmt: skip


def _service(where: str, made: Callable[..., Any], given: Mapping[str, Any], passes: PassSettings) -> Answerer:
    fields = [field for field in dataclasses.fields(made) if field.name != "media"]  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    _check_keys(where, given, required=required, accepted=[field.name for field in fields])
    return made(**given, media=passes.media)


def _check_keys(where: str, given: Mapping[str, Any], *, required: Any, accepted: Any) -> None:
    for key in given:
        if key not in accepted:
            known = ["kind", *accepted, *(field.name for field in dataclasses.fields(AnswerSettings))]
            raise ConfigError("a responder has no such setting", where=where, given=key,
                              expected=f"one of {', '.join(known)}", fix=suggestion(key, known))  # fmt: skip
    for key in required:
        if given.get(key) is None:
            raise ConfigError("a responder's setting is missing", where=f"{where}.{key}", expected="a value from you")
