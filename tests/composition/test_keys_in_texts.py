"""Every config key that an error, a warning or a line of advice in the package names is one that the user can set."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra

import mmrlhf
from mmrlhf.composition.config import CONF
from mmrlhf.composition.overrides import iterate_keys
from mmrlhf.composition.unread import references_in

PACKAGE = Path(mmrlhf.__file__).parent
SECTIONS = (
    "model|optim|data|stages|method|pairs|runtime|trainer|scale|inputs|rounds|logger|callbacks|expander|benchmark|paths"
)
KEY = re.compile(rf"(?<![\w./*-])((?:{SECTIONS})\.[a-z_][\w.]*)")
FIELDS = {"where", "fix", "expected"}
# words that look like keys: a tensor's name in the original LLaVA layout, a method of transformers' models
NO_KEYS = {f"model.{name}" for name in ("layers", "vision_tower", "mm_projector", "image_newline", "embed_tokens")}
NO_KEYS |= {"model.resize_token_embeddings"}
# several choices, because one composition has one method, one expander, one way of rounds
COMPOSITIONS = (
    (),
    ("rounds=self_improve", "model=qwen3_vl", "data=rlaif_v", "trainer=fsdp", "method=mdpo", "expander=local"),
    ("data=converted",),
    ("data=mm_rlhf", "expander=recorded", "method=odpo", "benchmark=own"),
)


def _texts() -> Iterator[tuple[str, str]]:
    """(file:line, text) of what errors say in fields that name places and remedies; `\\0` is what is filled in."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg in FIELDS:
                for part in ast.walk(node.value):
                    where = f"{file.relative_to(PACKAGE)}:{node.value.lineno}"
                    if isinstance(part, ast.JoinedStr):
                        words = (str(v.value) if isinstance(v, ast.Constant) else "\0" for v in part.values)
                        yield where, "".join(words)
                    elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield where, part.value


@cache
def _known() -> frozenset[str]:
    found: set[str] = set()
    for words in COMPOSITIONS:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            found |= set(iterate_keys(hydra.compose("config", list(words))))
    # what nobody has to set, and may add: `${oc.select:model.recipe,null}`
    return references_in("".join(file.read_text() for file in CONF.rglob("*.yaml"))).union(found)


def _unknown(text: str) -> list[str]:
    keys = [(match[1].rstrip("."), match.end()) for match in KEY.finditer(text)]
    # a key whose end is filled in is known by its beginning
    return [
        key
        for key, end in keys
        if key not in _known() | NO_KEYS
        and not (text[end : end + 1] == "\0" and any(other.startswith(key) for other in _known()))
    ]


def test_every_key_that_a_text_names_exists() -> None:
    texts = list(_texts())
    named = [text for _, text in texts if KEY.search(text)]
    assert len(named) > 40
    assert not [(where, unknown) for where, text in texts if (unknown := _unknown(text))]


def test_a_key_that_does_not_exist_would_be_seen() -> None:
    assert _unknown("set optim.lr") == ["optim.lr"] and _unknown("model.settings.max_tokenz=1")
    assert not _unknown("optim.mmdpo.lr, data.holdout") and not _unknown("model.settings.\0")
