"""The study of judges: what it runs, and what it makes of the rewards that the judges leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from stand_ins.scripts import loaded_script

from mmrlhf.records.draft import Draft
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.responders.answered import DRAWN
from mmrlhf.shapes.world import write_world
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import PreferenceGroup

DRAWS = [10, 3, 2, 1, 0, 0]


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with loaded_script("judges", "experiments/05_judges/study.py") as module:
        yield module


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Drawn queries, packed; and the same as if a policy had given the responses as its answers."""
    root, plain, answers = (tmp_path_factory.mktemp(name) for name in ("world", "pack", "answers"))
    write_world(root, num_groups=24, seed=0)
    groups = [draft.load() for draft in import_released(root) if isinstance(draft, Draft)]
    write_shards(iter(groups), plain)
    write_shards((answered(group) for group in groups), answers)
    return plain, answers


def answered(group: PreferenceGroup) -> PreferenceGroup:
    number = len(group.responses)
    drawn = [*DRAWS[: number - 1], 16 - sum(DRAWS[: number - 1])]
    return replace(group, meta={**group.meta, DRAWN: drawn})


def leave(folder: Path, packs: tuple[Path, Path], power: float) -> None:
    """What a judge's two runs leave whose rewards are the true quality times `power`."""
    plain, answers = packs
    for number, (stage, pack) in enumerate((("score", plain), ("best_rewards", answers))):
        made = folder / str(number) / "artifacts"
        (made / stage).mkdir(parents=True)
        (made / "pack").symlink_to(plain)
        (made / stage / "metrics.json").write_text("{}")
        (made / stage / "artifact.json").write_text(json.dumps({"settings": {"holdout": 0.5}}))
        index = Index.load(pack)
        with SideCarWriter(made / stage / "rewards", columns=["reward", "critique_tokens"], fingerprint={}) as writer:
            for row in range(len(index)):
                group = index.read(row, media=False)
                for response, quality in zip(group.responses, group.meta["quality"], strict=True):
                    writer.add(group.key, response.hash, {"reward": power * quality, "critique_tokens": 30})
    for stage in ("best_of_n", "best_answers"):
        (made / stage).mkdir()
        (made / stage / "metrics.json").write_text("{}")
    (made / "best_answers" / "shards").symlink_to(answers)


def test_a_judge_that_is_always_right_chooses_as_the_truth_does(
    study: ModuleType, packs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name = {judge.name: judge for judge in study.JUDGES}
    for name, power in (("full", 1.0), ("none", -1.0)):
        leave(tmp_path / f"{by_name[name].folder}-0", packs, power)
    study.main(["--collect", "--seeds", "0,1", "--out", str(tmp_path), "--results", str(tmp_path / "results")])
    with (tmp_path / "results" / "judges.csv").open(encoding="utf-8") as file:
        rows = {row["judge"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"full", "none", "random", "truth"}
    assert float(rows["full"]["ACC, truth"]) == 1 and float(rows["none"]["ACC, own"]) == 0
    assert rows["truth"]["ACC, truth"] == "" and rows["full"]["tokens"] == "30.0"
    best = {name: float(row["best of 16"]) for name, row in rows.items()}
    assert best["full"] == best["truth"] > best["random"] > best["none"]
    assert float(rows["none"]["over full"]) == pytest.approx(best["none"] - best["full"], abs=1e-4)
    assert float(rows["random"]["over one"]) == 0
    with (tmp_path / "results" / "curves.csv").open(encoding="utf-8") as file:
        curve = [float(row["quality"]) for row in csv.DictReader(file) if row["judge"] == "full"]
    assert len(curve) == len(study.SIZES) and curve == sorted(curve) and curve[0] == pytest.approx(best["random"])
    assert (tmp_path / "results" / "judges.png").stat().st_size > 1000
    assert "did not finish: full, seed 1" in capsys.readouterr().out


def test_rates_are_of_all_rounds(
    study: ModuleType, packs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The median of three rounds, with the fastest and the slowest; judges are asked as their arms say."""
    leave(tmp_path / "full__4_critiques-0", packs, 1.0)
    (tmp_path / "full__4_critiques-0" / "0" / "artifacts" / "reward" / "model").mkdir(parents=True)
    asked: list[object] = []
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 24.0])
    monkeypatch.setattr(study.time, "process_time", lambda: next(clock))
    judge = SimpleNamespace(score_groups=lambda groups: asked.append(len(groups)))
    monkeypatch.setattr(study.RewardModel, "from_pretrained", lambda model, critiques: asked.append(critiques) or judge)
    study.main(["--rates", "--seeds", "0", "--out", str(tmp_path), "--results", str(tmp_path / "results")])
    with (tmp_path / "results" / "rates.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    settings, *numbers = asked
    assert (settings.num_samples, settings.temperature, settings.max_tokens) == (4, 1, 96)  # type: ignore[attr-defined]
    assert len(numbers) == 3 and row["judge"] == "full, 4 critiques"
    rates = [float(row[f"queries a second{end}"]) for end in (" low", "", " high")]
    assert rates == [pytest.approx(numbers[0] / seconds, abs=1e-4) for seconds in (4, 2, 1)]  # type: ignore[operator]


def test_every_judge_is_asked_in_both_stages_alike(
    study: ModuleType, packs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, **_: calls.append(command) or SimpleNamespace())
    leave(tmp_path / "full-0", packs, 1.0)
    study.main(["--seeds", "0", "--out", str(tmp_path), "--results", str(tmp_path / "results"), "scale=tiny"])
    assert len(calls) == len(study.JUDGES) - 1, "what is done is not done again"
    assert all("stage=score,best_of_n" in call and call[-1] == "scale=tiny" for call in calls)
    several = next(call for call in calls if any("num_samples=4" in word for word in call))
    for stage in ("score", "best_rewards"):
        assert {f"stages.{stage}.critiques.num_samples=4", f"stages.{stage}.critiques.temperature=1"} <= set(several)
    turned = next(call for call in calls if "stages.reward.shards=stage:pack_turned" in call)
    assert not any(word.startswith("inputs.shards=") for word in turned), "measured on rankings as they are"
