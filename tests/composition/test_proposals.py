"""What is proposed after a run is that run again, with one thing changed."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from mmrlhf.composition.proposals import propose

CONF = Path(__file__).parents[2] / "conf"
GRID = "method.w=0.1,0.5,1.0 method.k=0.25,0.5,1.0"


def proposed(*words: str) -> list[str]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return propose(hydra.compose("config", list(words)), words)


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        ((), [f"python run.py -m {GRID}"]),
        (
            ("experiment=mmdpo_llava", "data.root=a b"),
            [f"python run.py -m experiment=mmdpo_llava 'data.root=a b' {GRID}"],
        ),
        (("method.w=2", "seed=3", "name=mine"), [f"python run.py -m seed=3 {GRID}"]),
        (
            ("experiment=reward_llava", "data.root=d"),
            ["python run.py experiment=reward_llava data.root=d stage=rewardbench"],
        ),
        (("experiment=dpo_llava",), []),
        (("stage=score",), []),
    ],
)
def test_the_runs_own_words_come_first(words: tuple[str, ...], commands: list[str]) -> None:
    assert proposed(*words) == commands
