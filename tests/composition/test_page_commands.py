"""The commands that stand on pages can be typed: every one composes, and a sweep's is the one that was typed."""

from __future__ import annotations

import html
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from stand_ins.sweep_jobs import make_job

from mmrlhf.chain.runtime import Runtime
from mmrlhf.composition.config import CONF
from mmrlhf.stages import report
from mmrlhf.sweeps.page import write_page
from mmrlhf.sweeps.results import Metric, read_sweep


def composed(words: Sequence[str]) -> list[DictConfig]:
    """The configs of a command's jobs: one, or of a sweep one for each combination."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    choices = [
        [f"{each.key_or_group}={value}" for value in each.sweep_string_iterator()]
        if each.is_sweep_override()
        else [word]
        for word, each in zip(words, parsed, strict=True)
    ]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return [hydra.compose("config", list(job)) for job in itertools.product(*choices)]


def words_of(command: str) -> list[str]:
    program, *words = shlex.split(command)
    assert program in ("python", "mmrlhf")
    return words[1:] if program == "python" else words


def test_a_report_s_commands_for_what_is_missing_compose(tmp_path: Path, runtime: Runtime) -> None:
    report.run(tmp_path, runtime=runtime)
    page = html.unescape((tmp_path / "report.html").read_text())
    commands = re.findall(r'class="missing">.*?<code>(.*?)</code>', page)
    assert len(commands) == 8
    for command in set(commands):
        (config,) = composed(words_of(command))
        assert config.stage in config.stages


@pytest.mark.parametrize("words", [["method.w=0.1,0.5", "seed=1", "data.root=a b"], ["name=it's <b>", "stage=mmdpo"]])
def test_a_sweep_s_command_is_the_one_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "-m", *words])
    make_job(tmp_path / "0", {"method.w": 0.1}, 0.5)
    write_page(read_sweep(tmp_path, [Metric("quality", "evaluate/quality/mean")]), tmp_path / "sweep.html")
    command = html.unescape(re.findall(r"<pre>(.*?)</pre>", (tmp_path / "sweep.html").read_text(), re.DOTALL)[-1])
    multirun, *typed = words_of(command.strip().splitlines()[-1])
    assert multirun == "-m" and typed == words
    if "data.root=a b" in words:
        jobs = composed(typed)
        assert [(job.method.w, job.seed) for job in jobs] == [(0.1, 1), (0.5, 1)]
        assert {job.data.root for job in jobs} == {"a b"}


def test_one_word_says_how_reward_models_are_asked() -> None:
    """As the docs have it: `protocol=released`, for rewards and benchmark alike."""
    (config,) = composed(["protocol=released"])
    assert config.stages.score.protocol == config.stages.rewardbench.protocol == "released"
