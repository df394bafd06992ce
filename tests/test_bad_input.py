"""What a user can get wrong: each mistake is one screen that names the place, what was expected and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from stand_ins.sample_groups import write_pictures, write_records

from mmrlhf.app import CONF, run_chain
from mmrlhf.errors import ConfigError, DataError, HubError, ModelError, UserError
from mmrlhf.models import hub
from mmrlhf.reporting.outcome import show_error
from mmrlhf.shards.sidecar import SideCarWriter
from mmrlhf.training import ranks

USUAL = ["experiment=mmdpo_llava", "scale=tiny", "logger=none", "trainer=cpu", "runtime.progress=false"]
MINE = "data.importer.on_bad_line=error"


def ranked(number: int, **fields: Any) -> dict[str, Any]:
    answers = [{"text": f"answer {rank} to {number}", "rank": rank, "critiques": {"short": "so"}} for rank in (1, 2, 3)]
    return {"id": f"q{number}", "image": "long/a.jpg", "prompt": f"what is {number} ?", "responses": answers, **fields}


def write_data(root: Path, rows: list[Any], name: str = "data.jsonl") -> Path:
    write_pictures(root, "long/a.jpg")
    return write_records(root, name, rows)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for good data and for artefacts, so that data are packed and models drawn once."""
    root = tmp_path_factory.mktemp("shared")
    write_data(root / "good", [ranked(number) for number in range(8)])
    return root


Run = Callable[..., list[Any]]


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Run:
    """Run the chain in this process on good data, unless overrides say otherwise."""

    def start(*overrides: str, data: Path | None = None) -> list[Any]:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            words = [f"data.root={data or shared / 'good'}", f"paths.artifacts={shared / 'artifacts'}"]
            return run_chain(hydra.compose("config", [*USUAL, *words, *overrides]), tmp_path / "run")

    return start


def screen(error: UserError, capsys: pytest.CaptureFixture[str]) -> str:
    """What the user reads, which is a screen at most."""
    capsys.readouterr()
    show_error(error)
    text = capsys.readouterr().err
    assert len(text.splitlines()) <= 24 and "Traceback" not in text
    return str(error)


def trained(shared: Path) -> set[str]:
    """Stages that have begun or finished in the shared store."""
    return {path.parent.name for path in (shared / "artifacts").glob("*/*/metrics.json")}


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        ([ranked(0), "{not json"], [MINE], ["data.jsonl:2", "JSON"]),
        ([ranked(0), {"id": "q1", "responses": [{"text": "a"}]}], [MINE], ["data.jsonl:2", "prompt"]),
        ([ranked(0), {"id": "q1", "prompt": "p"}], [MINE], ["data.jsonl:2:responses", "a list"]),
        ([ranked(0, image="long/broken.png")], [], ["data.jsonl:1", "no record could be used"]),
        ([ranked(0, image="long/absent.png")], [], ["data.jsonl:1", "missing"]),
        ([ranked(0, image="../a.png")], [], ["data.jsonl:1", "leaves the data folder"]),
        (["{not json", "[]"], [], ["data.jsonl:1", "no line of the file"]),
        ([], [], ["no records"]),
    ],
)
def test_bad_records(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str], rows: list[Any], overrides: list[str], said: list[str]
) -> None:
    root = write_data(tmp_path / "data", rows)
    (root / "long" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError) as caught:
        run(*overrides, data=root)
    text = screen(caught.value, capsys)
    assert all(part in text for part in said)


def test_no_data_folder(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match=r"does not exist(?s:.)*nowhere"):
        run(data=tmp_path / "nowhere")


def test_data_in_another_layout(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError) as caught:
        run(data=tmp_path / "data")
    text = screen(caught.value, capsys)
    assert "train.parquet" in text and "dpo_pairs.jsonl" in text and "importer.file" in text


def test_nothing_to_compare(tmp_path: Path, run: Run) -> None:
    same = [
        {"text": "a", "rank": 1, "critiques": {"short": "s"}},
        {"text": "b", "rank": 1, "critiques": {"short": "s"}},
    ]
    root = write_data(tmp_path / "data", [ranked(number, responses=same) for number in range(4)])
    with pytest.raises(DataError, match=r"no pair to learn from(?s:.)*fix"):
        run(data=root)


def test_a_prompt_that_does_not_fit(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError) as caught:
        run("model.settings.max_tokens=20")
    text = screen(caught.value, capsys)
    assert "key q" in text and "at most 20 tokens" in text and "model.settings.max_tokens" in text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.w=-1", "w"),
        ("method.k=0", "k"),
        ("data.holdout=2", "holdout"),
        ("data.holdout=0", "holdout"),
        ("model.settings.precision=fp16", "model.settings.precision"),
        ("scale.max_steps=0", "max_steps"),
        ("data.critique=long", "critique"),
        ("data.media.sampling=often", "sampling"),
        ("data.media.num_frames=0", "num_frames"),
        ("optim.mmdpo.lr=-1", "lr"),
        ("model.token_budget=0", "token_budget"),
        ("model.settings.attention=flex", "model.settings.attention"),
        ("model=gemma3 model.settings.attention=cascade", "pictures whose tokens see each other"),
        ("trainer=fsdp trainer.accelerator=cpu model.settings.layout=rows", "model.settings.layout, trainer"),
        ("trainer=fsdp trainer.accelerator=cpu optim.name=adamw_8bit", "optim.name, trainer"),
        ("stages.mmdpo.training=null", "stages.mmdpo.training"),
    ],
)
def test_settings_that_cannot_work_are_found_before_anything_runs(
    shared: Path, run: Run, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    if "adamw_8bit" in override:
        pytest.importorskip("bitsandbytes")
    begun = set((shared / "artifacts").glob("*/*"))
    with pytest.raises(ConfigError) as caught:
        run(*override.split())
    assert said in screen(caught.value, capsys)
    assert set((shared / "artifacts").glob("*/*")) == begun


def test_a_model_that_this_machine_cannot_train_is_refused_before_anything_is_packed(
    run: Run, shared: Path, tmp_path: Path, small_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command itself; what is only planned is for whatever machine, one with GPUs for instance."""
    monkeypatch.setattr(ranks, "MEMINFO", tmp_path / "meminfo")
    ranks.MEMINFO.write_text("MemTotal: 100 kB")
    begun, words = set((shared / "artifacts").glob("*/*")), (f"model.path={small_policy}", "stage=reward")
    with pytest.raises(ConfigError, match=r"does not fit into memory(?s:.)*stages\.reward(?s:.)*0\.0 GiB that a rank"):
        run(*words)
    assert run(*words, "trainer=gpu", "model.settings.attention=flex", "dry=true") == []
    assert set((shared / "artifacts").glob("*/*")) == begun


def test_a_checkpoint_of_another_family(run: Run, shared: Path, tiny_folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"another family(?s:.)*qwen2_5_vl(?s:.)*llava_onevision(?s:.)*model="):
        run(f"model.path={tiny_folders['qwen2_5_vl']}")


def test_a_folder_that_is_no_checkpoint(run: Run, shared: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model checkpoint(?s:.)*config\.json"):
        run(f"model.path={shared / 'good'}")


def test_a_checkpoint_that_no_hub_gives(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"someone/no-such-model(?s:.)*model\.path=DIR"):
        run("model.path=someone/no-such-model")


def test_rewards_of_other_shards(run: Run, tmp_path: Path) -> None:
    fingerprint = {"made_by": "score", "shards": "another digest"}
    with SideCarWriter(tmp_path / "rewards", columns=["reward"], fingerprint=fingerprint) as writer:
        writer.add("q0", "0" * 16, {"reward": 1.0})
    with pytest.raises(DataError, match=r"table of rewards(?s:.)*another digest(?s:.)*score"):
        run("stage=mmdpo", f"inputs.rewards={tmp_path / 'rewards'}")
    with pytest.raises(DataError, match="rewards"):
        run("stage=mmdpo", f"inputs.rewards={write_data(tmp_path / 'other', [])}")


def test_no_mistake(run: Run, tmp_path: Path) -> None:
    """The good data are good, and a bad line among many is left out and reported."""
    rows = [json.dumps(ranked(number)) for number in range(6)]
    root = write_data(tmp_path / "data", [*rows, "{not json"])
    summary = run("stage=reward", data=root)[0].summary
    assert (summary["groups"], summary["rejected"]) == (6, 1)
