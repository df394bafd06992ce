"""A setting is said once: every parameter of every configured object is listed, explained and set by its plain name."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import OmegaConf

from mmrlhf.composition.comments import comment_of, comments
from mmrlhf.composition.config import CONF
from mmrlhf.composition.listing import as_text, list_settings
from mmrlhf.composition.signatures import GIVEN_BY_RUNNER, Unreadable, described, parameters
from mmrlhf.composition.source import left_out
from mmrlhf.errors import ConfigError

# what signatures had and the command line refused, in its own words
ONCE_REFUSED = {
    "model.settings": ["lora_rank", "lora_alpha", "lora_dropout", "lora_head", "logprob_chunk", "family"],
    "model.size": ["max_positions"],
    "model.tower": ["lr"],
    "optim.sft": ["schedule", "max_grad_norm"],
    "optim.mmdpo": ["weight_decay", "betas", "schedule", "max_grad_norm"],
    "stages.reward.pairs": ["rank_by", "ties", "min_margin"],
    "stages.sft.training.schedule.selection": ["categories", "modalities", "responses", "seconds"],
    "stages.sft.training.schedule.mixing": ["weights", "balance", "strength", "shuffle_window"],
    "stages.world": ["min_objects", "max_objects", "num_annotators", "rank_by", "jitter", "noise", "image_format"],
    "stages.world ": ["warmup_truth", "warmup_mix"],
    "stages.pack": ["max_groups_per_shard", "max_megabytes"],
    "stages.score": ["report_queries"],
    "stages.annotations": ["report_queries"],
    "stages.mean_rewards": ["report_queries"],
    "stages.expand": ["instruction", "max_growth"],
    "stages.report": ["title", "max_queries"],
    "stages.fetch": ["endpoint", "revision"],
    "stages.fetch_reward": ["endpoint", "revision"],
    "stages.rewardbench": ["rewards", "limit"],
    "data.importer": ["file", "media", "source", "licence", "on_bad_line"],
    "expander": ["pause"],
}


def _compose(*overrides: str) -> Any:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=False)


@cache
def _default() -> Any:
    return _compose()


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _objects(value, f"{path}.{key}".lstrip("."))


def _another(value: Any) -> str:
    """A value that a setting does not have yet, as a word of the command line."""
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int | float):
        return str(value + 1)
    return "[7]" if isinstance(value, list) else "another"


@cache
def _plain_words() -> tuple[dict[str, str], Any]:
    """All of them as a user types them, and what they compose to."""
    keys = [f"{node.strip()}.{name}" for node, names in ONCE_REFUSED.items() for name in names]
    words = {key: _another(_at(_default(), key)) for key in keys}
    return words, _compose(*(f"{key}={word}" for key, word in words.items()))


@pytest.mark.parametrize("node", ONCE_REFUSED)
def test_what_once_needed_a_plus_is_set_by_its_plain_name(node: str) -> None:
    words, composed = _plain_words()
    for key in (f"{node.strip()}.{name}" for name in ONCE_REFUSED[node]):
        assert _at(composed, key) == yaml.safe_load(words[key]) != _at(_default(), key)


def test_every_parameter_of_every_object_is_set_by_its_plain_name() -> None:
    words = {}
    for path, node in _objects(_default()):
        for name in parameters(node["_target_"]) or {}:
            if name in node and not isinstance(node[name], dict):
                words[f"{path}.{name}"] = _another(node[name])
    assert len(words) > 300
    composed = _compose(*(f"{key}={word}" for key, word in words.items()))
    assert not [key for key, word in words.items() if _at(composed, key) != yaml.safe_load(word)]


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("data.mixing.weights={main: 1, other: 2}", "data.mixing.weights", {"main": 1, "other": 2}),
        ("data.mixing.weights.other=2", "data.mixing.weights", {"other": 2}),
        ("stages.annotations.weights.ethics=2", "stages.annotations.weights", {"overall": 1.0, "ethics": 2}),
        ("stages.world.warmup_mix={answer: 1}", "stages.world.warmup_mix", {"answer": 1}),
        ("stages.sft.training.schedule.mixing.weights={a: 3}", "stages.sft.training.schedule.mixing.weights", {"a": 3}),
        ("logger.columns.mine=3", "logger.columns.mine", 3),
        ("inputs.against={bench: DIR}", "inputs.against", {"bench": "DIR"}),
        ("inputs.queries.charts=DIR", "inputs.queries.charts", "DIR"),
        ("inputs.other_judges={a: DIR}", "inputs.other_judges", {"a": "DIR"}),
        ("suite.folders={pope: DIR}", "suite.folders", {"pope": "DIR"}),
    ],
)
def test_a_setting_that_is_a_mapping_takes_any_key(word: str, key: str, value: Any) -> None:
    assert _at(_compose(word), key) == value


def _described_objects() -> Iterator[tuple[Path, str, dict[str, Any]]]:
    for file in sorted(CONF.rglob("*.yaml")):
        content = yaml.safe_load(file.read_text()) or {}
        yield from ((file, path, node) for path, node in _objects(content))


TARGETS = sorted({node["_target_"] for _, _, node in _described_objects() if node["_target_"].startswith("mmrlhf.")})


@pytest.mark.parametrize("target", [*TARGETS, "mmrlhf.chain.runtime.Runtime"])
def test_signatures_are_read_as_python_reads_them(target: str) -> None:
    """What the source text says is what `inspect` says, and the docstring explains each parameter."""
    known, real = parameters(target), inspect.signature(get_object(target)).parameters
    assert known is not None
    given = GIVEN_BY_RUNNER if target.startswith("mmrlhf.stages.") else frozenset()
    assert set(known) == set(real) - given
    for name, parameter in known.items():
        assert parameter.is_required == (real[name].default is inspect.Parameter.empty), name
        assert len(parameter.explanation) > 2, f"the docstring of {target} does not explain {name}"
        default = real[name].default
        if not parameter.is_required and isinstance(default, bool | int | float | str | None | tuple):
            assert parameter.default() == (list(default) if isinstance(default, tuple) else default), name


def test_there_are_objects() -> None:
    assert len(TARGETS) > 45
    assert sum(len(parameters(target) or {}) for target in TARGETS) > 350


def test_a_file_leaves_nothing_out() -> None:
    """What a file says and what is added to it are all parameters of its objects, in every file and choice."""
    for file, path, node in _described_objects():
        added = left_out(node)
        for name, parameter in (parameters(node["_target_"]) or {}).items():
            assert name in node or name in added or parameter.is_required, f"{file}: {path}.{name}"
            if parameter.is_required and not node.get("_partial_"):
                assert name in node, f"{file}: {path}.{name} has no default and is not given"


def test_a_file_says_nothing_that_decides_nothing() -> None:
    """No null, false or empty value that is the default anyway; where a file inherits, it may undo what it inherits."""
    for file, path, node in _described_objects():
        if "defaults" not in yaml.safe_load((CONF / file).read_text()):
            for name, parameter in (parameters(node["_target_"]) or {}).items():
                value = node.get(name, ...)
                says_nothing = value is None or value is False or value in ("", [], {}, [None, None])
                assert not says_nothing or parameter.is_required or parameter.default() != value, (
                    f"{file}: {path}.{name}"
                )


def test_what_a_file_inherits_wins_over_a_default() -> None:
    assert _compose("data=preference_rows")["data"]["importer"]["on_bad_line"] == "reject", "of mm_rlhf.yaml"
    assert _compose("data=rlaif_v")["data"]["importer"]["source"] == "RLAIF-V"
    assert _default()["stages"]["score"]["passes"]["_target_"].endswith("PassSettings")


def test_default_objects_are_described_whole() -> None:
    schedule = described("mmrlhf.training.settings.Schedule")
    assert schedule["selection"]["_target_"] == "mmrlhf.feed.selection.Selection"
    assert schedule["selection"]["responses"] == [None, None] and schedule["epochs"] == 1.0


def test_a_default_that_only_code_knows_is_an_error() -> None:
    known = parameters("mmrlhf.chain.runtime.Runtime")
    assert known is not None
    with pytest.raises(Unreadable, match="lambda"):
        known["loggers"].default()
    assert parameters("lightning.Trainer") is None and parameters("mmrlhf.methods.optim.nothing") is None


def test_settings_are_explained_on_the_terminal() -> None:
    text = as_text(list_settings(["model.settings.lora", "optim.epochs", "method=dpo"]))
    assert "model.settings.lora_rank=64\n    of the adapters" in text
    assert "optim.epochs.sft=2.6\n    passes over the training queries" in text
    assert "model.settings.family" not in text
    assert {item.key for item in list_settings(["method.", "method=dpo"])} == {"method.beta", "method.sft_weight"}
    with pytest.raises(ConfigError, match="nonsense"):
        list_settings(["nonsense"])


def test_every_setting_is_explained() -> None:
    """By the parameter that reads it, or by the comment above it in conf/."""
    listed = {item.key: item.explanation for item in list_settings([])}
    assert len(listed) > 450 and not [key for key, explanation in listed.items() if not explanation]
    assert listed["paths.outputs"].startswith("one folder per run") and listed["dry"].startswith("true: print which")
    assert listed["runtime.progress"] == "show progress bars." and "nats" in listed["sweep_metrics.KL.path"]


def test_comments_are_those_directly_above_a_key(tmp_path: Path) -> None:
    for name, text in {
        "config.yaml": "# of the file\n\n# a word\n# and more\na: 1\nb:\n  # deep\n  c: {x: 1}\n  d: 2\n# end\ne: 3\n",
        "group/one.yaml": "# first\nf: 1\n",
        "group/two.yaml": "# another\nf: 1\n# only here\ng: 2\n",
        "all/three.yaml": "# @package _global_\n# top\nh:\n  i: 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = comments([tmp_path])
    assert found == {
        "a": "a word and more", "b.c": "deep", "e": "end", "group.f": "first", "group.g": "only here", "h": "top",
    }  # fmt: skip
    assert [comment_of(key, found) for key in ("b.c.x", "h.i", "b.d", "no")] == ["deep", "top", "", ""]


def test_the_tab_key_completes_settings(project: Path) -> None:
    line = "run.py model.settings.lora_"
    run = subprocess.run(
        [sys.executable, "run.py", "-sc", "query=bash"],
        cwd=project,
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"model.settings.lora_rank=", "model.settings.lora_alpha="} <= set(run.stdout.split())


def test_composing_imports_no_model_library() -> None:
    """Help, completion and `--cfg job` compose the config; they must not wait for libraries that only stages need."""
    code = (
        "import sys, json, mmrlhf.app; from mmrlhf.composition import listing, help_page;"
        "listing.list_settings([]); help_page.help_page();"
        "print(json.dumps([name for name in ('torch', 'transformers', 'lightning', 'scipy') if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []
