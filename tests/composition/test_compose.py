"""Configs of the user's own: read as those of conf/ are, kept in every command that is shown, slips named."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mmrlhf.chain.provenance import as_typed, program, typed_command
from mmrlhf.composition.compose import compose, config_folders, with_search_path
from mmrlhf.composition.config import CONF
from mmrlhf.composition.inventory_command import show_or_prune
from mmrlhf.composition.listing import list_settings
from mmrlhf.composition.overrides import explain
from mmrlhf.composition.proposals import propose
from mmrlhf.errors import ConfigError

OWN = {
    "expander/mine.yaml": "_target_: mmrlhf.expansion.expanders.EndpointExpander\nmodel: m\nurl: http://localhost\n",
    "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /expander: mine\nseed: 7\n",
    "paths/mine.yaml": "artifacts: own store\noutputs: own runs\n",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configs in the folder that the command is run in."""
    monkeypatch.chdir(tmp_path)
    for name, text in OWN.items():
        (tmp_path / "my conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my conf" / name).write_text(text)
    return tmp_path / "my conf"


@pytest.mark.parametrize(
    "words",
    [["--config-dir", "my conf"], ["--config-dir=my conf"], ["-cd", "my conf"], ["hydra.searchpath=['my conf']"],
     ["hydra.searchpath=['file://my conf']"]],
    ids=str,
)  # fmt: skip
def test_own_files_have_all_parameters_however_they_are_given(own: Path, words: list[str]) -> None:
    config = compose([*words, "experiment=mine"])
    assert config.seed == 7 and config.expander.model == "m"
    assert set(config.expander) == set(compose([]).expander), "those that the file leaves out are settings, too"
    assert list(config_folders(with_search_path(words))) == [CONF, own]


def test_what_is_asked_without_a_run_knows_them(own: Path) -> None:
    words = ["--config-dir", "my conf", "paths=mine", "expander=mine"]
    (setting,) = list_settings([*words, "expander.model"])
    assert setting.value == "m"
    (Path("own store") / "pack" / ("0" * 12)).mkdir(parents=True)
    with pytest.raises(ConfigError, match="add --yes"):
        show_or_prune([*words, "prune"])
    misspelt = _composed([*words, "expander.modle=a"])
    assert "did you mean expander.model" in str(explain(misspelt, with_search_path(words)))


def _composed(words: list[str]) -> Exception:
    try:
        compose(words)
    except Exception as error:
        return error
    raise AssertionError(words)


def test_commands_that_are_shown_have_them(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["--config-dir", "my conf", "experiment=mine", "stage=report"]
    assert as_typed(with_search_path(typed)) == typed
    for started, shown in (
        ("/somewhere/bin/mmrlhf", ["mmrlhf"]), ("/site/mmrlhf/__main__.py", ["python", "-m", "mmrlhf"]),
        ("a/run.py", ["python", "a/run.py"]), ("/site/submitit/core/_submit.py", ["python", "run.py"]),
    ):  # fmt: skip
        monkeypatch.setattr("sys.argv", [started, *with_search_path(typed)])
        assert program() == shown and typed_command() == " ".join([*shown, "--config-dir 'my conf'", *typed[2:]])
    (command,) = propose(compose(typed), typed[2:], program=["mmrlhf"], folders=typed[:2])
    assert command.startswith("mmrlhf --config-dir 'my conf' -m experiment=mine method.w=")


@given(st.lists(st.sampled_from(["stage=pack", "-m", "data.root=a=b", "hydra.searchpath=[pkg://some.module]", "a b"])))
def test_other_words_stay(words: list[str]) -> None:
    once = [word for word in words if not word.startswith("hydra")] + [w for w in words if w.startswith("hydra")][:1]
    found = with_search_path(once)
    assert as_typed(found) == found and sorted(word.replace('"', "") for word in found) == sorted(once)


@pytest.mark.parametrize("option", [["--cfg", "job"], ["-m"], ["--info"], []], ids=str)
def test_options_stand_anywhere_among_the_settings(own: Path, option: list[str]) -> None:
    parser = argparse.ArgumentParser()  # Hydra's, as far as this goes
    parser.add_argument("settings", nargs="*")
    parser.add_argument("-m", action="store_true")
    parser.add_argument("--cfg")
    parser.add_argument("--info", nargs="?", const="all")
    for words in (["seed=1", "~trainer", *option], [*option, "seed=1", "~trainer"], ["seed=1", *option, "~trainer"]):
        if option != ["--info"] or words[0] == "seed=1":  # what follows it is its value
            assert parser.parse_args(with_search_path(words)).settings == ["seed=1", "~trainer"]
            taken = parser.parse_args(with_search_path(["--config-dir", "my conf", *words]))
            assert taken.settings[1:] == ["seed=1", "~trainer"] and taken.m == (option == ["-m"])


NOWHERE = [["--config-dir", "nowhere"], ["--config-dir"], ["-cd="], ["hydra.searchpath=[nowhere]"]]


@pytest.mark.parametrize("words", NOWHERE, ids=str)
def test_a_folder_that_is_not_there_is_named(own: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="not there"):
        compose(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"seed: [1\n", "not YAML\n  where: .*mine.yaml, line 3"),
        (b"seed: 1\nseed: 2\n", "not YAML\n  where: .*mine.yaml, line 3"),
        (b"\tseed: 1\n", "not YAML"),
        (b"seed: \xff\n", "not UTF-8"),
        ("seed: 1\n".encode("utf-16"), "not UTF-8"),
        (b"- seed\n", "no mapping"),
        (b"defaults: 3\n", "`defaults` cannot be read"),
        (b"defaults: {method: dpo}\n", "`defaults` cannot be read"),
        (b"defaults: [3]\n", "`defaults` cannot be read"),
        (b"defaults: [{a: b, c: d}]\n", "`defaults` cannot be read"),
        (b"seed: ${\n", "cannot be read|grammar|GrammarParseError"),
        (b"[" * 3000, "cannot be read|not YAML"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_slip_in_a_file_names_the_file(own: Path, text: bytes, message: str) -> None:
    (own / "experiment" / "mine.yaml").write_bytes(b"# @package _global_\n" * (text[:1] != b"\xff") + text)
    with pytest.raises(ConfigError, match=message) as caught:
        compose(["--config-dir", "my conf", "experiment=mine"])
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("word", ["rounds=3", "trainer=4", "callbacks=null", "optim=true", "stages=null"])
def test_a_number_is_no_option(own: Path, word: str) -> None:
    said = explain(_composed([word]), [word])
    assert said.given == word and "is a group" in said.problem
    if not word.startswith("stages"):
        assert f"{word.partition('=')[0]}=" in str(said.expected)


def test_what_becomes_of_one_config_is_not_seen_in_the_next() -> None:
    """Files are read once; whoever changes a composed config changes that one."""
    first = compose(["scale=tiny"])
    before = OmegaConf.to_yaml(first)
    OmegaConf.set_struct(first, False)
    first.stages.mmdpo.clear()
    first.model.settings.max_tokens, first.data.another, first.method = 3, 1, None
    assert OmegaConf.to_yaml(compose(["scale=tiny"])) == before


def test_what_was_composed_before_changes_nothing() -> None:
    """The jobs of a sweep are composed in one process."""
    jobs = (["logger=csv"], ["logger=[wandb,tensorboard]"], ["logger=[tensorboard,csv]"], ["callbacks=none"])
    alone = [OmegaConf.to_yaml(compose(job)) for job in jobs]
    assert [OmegaConf.to_yaml(compose(job)) for job in reversed(jobs)] == alone[::-1]
    assert not compose(["logger=[wandb,tensorboard]"]).logger.csv
