"""Laws of the runner: each stage once, inputs by place, several processes only where asked for, errors come through."""

from __future__ import annotations

import json
import os
import signal
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmrlhf.chain.artifact import Artifact
from mmrlhf.chain.launch import WorkerFailed, single_process
from mmrlhf.chain.order import counted_settings, plan_chain, stage_function, with_paths
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.store import Store
from mmrlhf.chain.worker import StageCall, read_error, work_on, write_error
from mmrlhf.errors import ConfigError, DataError, UserError
from mmrlhf.processes import Group, TrainingInterrupted, count_devices, outside_group

FAKE = "stand_ins.fake_stages"
ALONE = {"trainer": {"devices": 1, "accelerator": "cpu", "num_nodes": 1}}
NODES = {
    "world": {"_target_": f"{FAKE}.source", "size": 3},
    "sft": {"_target_": f"{FAKE}.train", "data": "stage:world"},
    "mmdpo": {"_target_": f"{FAKE}.train", "data": "stage:world", "policy": "stage:sft/model", "rate": 0.2},
    "report": {"_target_": f"{FAKE}.two_inputs", "tables": ["stage:sft", "stage:mmdpo/model"]},
}


def _invoke(call: StageCall) -> Any:
    function = stage_function(call.target)
    runtime = SimpleNamespace(trainer=partial(dict, **call.runtime["trainer"]))
    return function(Path(call.out), **with_paths(function, call.settings), runtime=runtime)


def _run(tmp_path: Path, goal: str, nodes: dict = NODES, **options: Any) -> list[Artifact]:
    options.setdefault("runtime", ALONE)
    runner = Runner(Store(tmp_path / "store"), _invoke, work=tmp_path / "work", **options)
    return runner.run(plan_chain(goal, nodes.__getitem__, list(nodes)))


def _counts(tmp_path: Path) -> dict[str, int]:
    return {file.stem: len(file.read_text()) for file in (tmp_path / "store").glob("*.count")}


def test_a_chain_is_built_once(tmp_path: Path) -> None:
    first = _run(tmp_path, "report")
    second = _run(tmp_path, "report")
    assert [artifact.stage for artifact in first] == ["world", "sft", "mmdpo", "report"]
    assert not any(artifact.reused for artifact in first) and all(artifact.reused for artifact in second)
    assert _counts(tmp_path) == {"world": 1, "sft": 1, "mmdpo": 1}
    assert first[1].summary == {"letters": 3, "rate": 0.1, "world": 1}


def test_only_what_depends_on_a_change_is_built_again(tmp_path: Path) -> None:
    _run(tmp_path, "report")
    _run(tmp_path, "report", {**NODES, "mmdpo": {**NODES["mmdpo"], "rate": 0.3}})
    assert _counts(tmp_path) == {"world": 1, "sft": 1, "mmdpo": 2}
    _run(tmp_path, "report", {**NODES, "world": {**NODES["world"], "size": 4}})
    assert _counts(tmp_path) == {"world": 2, "sft": 2, "mmdpo": 3}


def test_runtime_changes_nothing(tmp_path: Path) -> None:
    _run(tmp_path, "sft")
    again = _run(tmp_path, "sft", runtime={**ALONE, "num_workers": 4, "progress": False})
    assert all(artifact.reused for artifact in again)


def test_settings_that_no_result_depends_on_build_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{FAKE}.LIMITS", ("thing.w*", "things.*.wide"), raising=False)

    def said(thing: dict[str, Any]) -> list[bool]:
        nodes = {**NODES, "report": {**NODES["report"], "thing": thing}}
        (node,) = [each for each in plan_chain("report", nodes.__getitem__, list(nodes)) if each.name == "report"]
        tokens = counted_settings(node)
        return [name in tokens["thing"] for name in ("value", "wide")]

    assert said({"value": 1.0, "wide": 2.0}) == [True, False]
    _run(tmp_path, "sft")
    monkeypatch.setattr(f"{FAKE}.LIMITS", ("rate",))
    first = _run(tmp_path, "sft")
    again = _run(tmp_path, "sft", {**NODES, "sft": {**NODES["sft"], "rate": 0.7}})
    assert first[-1].fingerprint == again[-1].fingerprint and again[-1].reused
    other = _run(tmp_path, "sft", {**NODES, "sft": {**NODES["sft"], "policy": "hub/other"}})
    assert not other[-1].reused


def test_an_own_input_skips_its_stages(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "data.txt").write_text("12345")
    nodes = {**NODES, "sft": {**NODES["sft"], "data": str(own)}}
    chain = _run(tmp_path, "sft", nodes, inputs={str(own)})
    assert [artifact.stage for artifact in chain] == ["sft"] and chain[0].summary["letters"] == 5
    (own / "data.txt").write_text("123456")
    assert not _run(tmp_path, "sft", nodes, inputs={str(own)})[0].reused, "its content counts"


def test_a_part_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    nodes = {**NODES, "report": {"_target_": f"{FAKE}.two_inputs", "tables": ["stage:world/nothing"]}}
    with pytest.raises(ConfigError, match="no such part"):
        _run(tmp_path, "report", nodes)


def test_a_failed_stage_is_continued(tmp_path: Path) -> None:
    nodes = {"bad": {"_target_": f"{FAKE}.failing"}}
    with pytest.raises(DataError, match="damaged"):
        _run(tmp_path, "bad", nodes)
    assert _run(tmp_path, "bad", nodes)[0].summary == {"continued": True}


def test_several_processes_for_a_distributed_stage(tmp_path: Path, launched: list) -> None:
    runtime = {"trainer": {"devices": 2, "accelerator": "cpu", "num_nodes": 1, "strategy": "ddp"}}
    artifacts = _run(tmp_path, "sft", runtime=runtime, distributed=["sft"])
    assert artifacts[1].summary == {"letters": 3, "rate": 0.1, "world": 2}
    assert {item.name for item in artifacts[1].folder.glob("rank*")} == {"rank0", "rank1"}
    (call,) = launched
    assert call.runtime["trainer"]["devices"] == 2 and call.settings["data"] == str(artifacts[0].folder)
    assert not list(tmp_path.glob("store/sft/*.processes")), "what they exchanged is of no use any more"


def test_a_users_mistake_comes_through_from_a_process(tmp_path: Path, launched: list) -> None:
    nodes = {"bad": {"_target_": f"{FAKE}.failing"}}
    runtime = {"trainer": {"devices": 2, "accelerator": "cpu"}}
    with pytest.raises(DataError, match="damaged") as error:
        _run(tmp_path, "bad", nodes, runtime=runtime, distributed=["bad"])
    assert error.value.where == "shard-7" and error.value.fix == "delete it"


def test_an_argument_that_a_process_refused_is_still_known(tmp_path: Path) -> None:
    write_error(tmp_path / "error.json", ConfigError("too large", argument="stages.sft.rate", given=3))
    assert read_error(tmp_path / "error.json").argument == "stages.sft.rate"


def test_a_preempted_process_ends_the_run_without_a_result(tmp_path: Path, launched: list) -> None:
    nodes = {"bad": {"_target_": f"{FAKE}.failing", "kind": "preempted"}}
    runtime = {"trainer": {"devices": 2, "accelerator": "cpu"}}
    with pytest.raises(TrainingInterrupted, match="after step 3") as stop:
        _run(tmp_path, "bad", nodes, runtime=runtime, distributed=["bad"])
    assert stop.value.signal is signal.SIGUSR1, "of the rank that knows it, whichever came first"
    assert list(tmp_path.glob("store/bad/*.building")), "what it has is kept"


def test_any_other_failure_of_a_process_names_the_log(tmp_path: Path, launched: list) -> None:
    nodes = {"bad": {"_target_": f"{FAKE}.failing", "kind": "bug"}}
    runtime = {"trainer": {"devices": 2, "accelerator": "cpu"}}
    with pytest.raises(WorkerFailed, match="processes.log"):
        _run(tmp_path, "bad", nodes, runtime=runtime, distributed=["bad"])


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[StageCall]:
    """Run the processes of a stage one after another in this one (test_app starts real ones)."""
    calls: list[StageCall] = []

    def run_processes(arguments: list[str], *, num_processes: int, log_file: Path, workers: Any) -> int:
        call_file = Path(arguments[-1])
        calls.append(StageCall.load(call_file))
        monkeypatch.setenv("WORLD_SIZE", str(num_processes))
        try:
            for rank in reversed(range(num_processes)):
                monkeypatch.setenv("RANK", str(rank))
                if work_on(call_file, _invoke, rank):
                    return 1
                assert workers() == [os.getpid()]
        except RuntimeError:
            return 1
        return 0

    monkeypatch.setattr("mmrlhf.chain.worker.run_processes", run_processes)
    return calls


def test_ctrl_c_ends_a_group_outside_of_training_as_it_ends_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word from its processes: the one that launched them says it."""

    def run_processes(arguments: list[str], **options: Any) -> int:
        monkeypatch.setenv("RANK", "0")
        assert work_on(Path(arguments[-1]), _invoke, 0) == 0
        raise SystemExit(143)  # as after any signal

    monkeypatch.setattr("mmrlhf.chain.worker.run_processes", run_processes)
    runtime = {"trainer": {"devices": 2, "accelerator": "cpu"}}
    for kind, expected in (("ctrl-c", KeyboardInterrupt), ("preempted", SystemExit)):
        nodes = {"bad": {"_target_": f"{FAKE}.failing", "kind": kind}}
        with pytest.raises(expected):
            _run(tmp_path, "bad", nodes, runtime=runtime, distributed=["bad"])


def test_a_group_started_from_outside_shares_the_work(tmp_path: Path) -> None:
    runtime = {"trainer": {"devices": 2, "accelerator": "cpu", "num_nodes": 1}}
    calls: list[tuple[int, str, int]] = []

    def build(rank: int) -> None:
        def invoke(call: StageCall) -> Any:
            calls.append((rank, call.stage, call.runtime["trainer"]["devices"]))
            meet[call.stage].wait(10)
            return {"rank": rank} if rank else _invoke(call)

        runner = Runner(
            Store(tmp_path / "store"),
            invoke,
            runtime=runtime,
            distributed=["sft"],
            work=tmp_path / "work",
            group=Group(rank, 2, "launch"),
        )
        chain = plan_chain("sft", NODES.__getitem__, list(NODES))
        results[rank] = [artifact.folder for artifact in runner.run(chain)]

    meet = {"world": threading.Barrier(1), "sft": threading.Barrier(2)}
    results: dict[int, list[Path]] = {}
    ranks = [threading.Thread(target=build, args=(rank,)) for rank in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert results[0] == results[1]
    assert sorted(calls) == [(0, "sft", 2), (0, "world", 1), (1, "sft", 2)]


@pytest.mark.parametrize("distributed", [[], ["bad"]])
@pytest.mark.parametrize(("kind", "message"), [("user", "a shard is damaged"), ("bug", "RuntimeError: a bug")])
def test_ranks_that_srun_started_do_not_wait_for_what_rank_0_fails_to_make(
    tmp_path: Path, kind: str, message: str, distributed: list[str]
) -> None:
    """In a sweep rank 0 goes on to its end, and nothing else would tell the others until the job's time is over."""
    nodes = {"bad": {"_target_": f"{FAKE}.failing", "kind": kind}}
    errors: dict[int, BaseException] = {}

    def build(rank: int) -> None:
        runtime = {"trainer": {"devices": 2, "accelerator": "cpu"}}
        group = Group(rank, 2, "slurm-7.0.0")

        def invoke(call: StageCall) -> Any:
            return {} if rank else _invoke(call)  # another rank may have done its part

        runner = Runner(Store(tmp_path / "store"), invoke, runtime=runtime, distributed=distributed,
                        work=tmp_path / "work", group=group)  # fmt: skip
        try:
            runner.run(plan_chain("bad", nodes.__getitem__, list(nodes)))
        except Exception as error:
            errors[rank] = error

    ranks = [threading.Thread(target=build, args=(rank,), daemon=True) for rank in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(3)
    assert sorted(errors) == [0, 1] and isinstance(errors[1], UserError) and message in str(errors[1])


CHECKED = {**NODES, "check": {"_target_": "stand_ins.fake_check.run", "data": "stage:world"}}


def test_a_check_runs_each_time_and_is_no_input(tmp_path: Path) -> None:
    for _ in range(2):
        world, check = _run(tmp_path, "check", CHECKED)
        assert check.summary == {"letters": 3} and not check.reused
    assert _counts(tmp_path) == {"world": 1} and len(list((tmp_path / "store" / "check").glob("*/artifact.json"))) == 2
    with pytest.raises(ConfigError, match="nothing for others to read"):
        _run(tmp_path, "sft", {**CHECKED, "sft": {**NODES["sft"], "data": "stage:check"}})


def test_a_check_in_a_group_started_from_outside_ends_on_every_rank(tmp_path: Path) -> None:
    """Its fingerprint is the time, which no two ranks share: rank 1 must not wait for its own."""
    runtime = {"trainer": {"devices": 2, "accelerator": "cpu"}}
    results = [
        [artifact.stage for artifact in _run(tmp_path, "check", CHECKED, runtime=runtime, group=Group(rank, 2, "a"))]
        for rank in range(2)
    ]
    assert results == [["world", "check"], ["world"]]


def test_wrong_launches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        _run(tmp_path, "sft", runtime={"trainer": {"devices": 1, "num_nodes": 2, "accelerator": "cpu"}})
    with pytest.raises(ConfigError, match="expected: 4"):
        _run(tmp_path, "sft", runtime={"trainer": {"devices": 2, "accelerator": "cpu"}}, group=Group(0, 4))


@pytest.mark.parametrize(("devices", "count"), [(1, 1), ("4", 4), ([0, 2], 2), ("0,2,3", 3), ("auto", 1), (-1, 1)])
def test_devices_are_counted(devices: Any, count: int) -> None:
    assert count_devices(devices, "cpu") == count


@pytest.mark.parametrize("devices", [0, -2, "two", None])
def test_impossible_devices_are_refused(devices: Any) -> None:
    with pytest.raises(ConfigError, match="trainer.devices"):
        count_devices(devices, "cpu")


def test_groups_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Group.from_environment({}) == Group()
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a", "MASTER_PORT": "9"}
    assert Group.from_environment(torchrun) == Group(1, 2, "a-9")
    batch_script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "5"}
    assert Group.from_environment(batch_script) == Group()
    step = {**batch_script, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_ID": "3", "SLURM_PROCID": "6"}
    assert Group.from_environment(step) == Group(6, 8, "slurm-5.3.0")
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with outside_group():
        assert Group.from_environment().size == 1
    assert Group.from_environment().size == 2


def test_one_device_for_stages_that_are_not_distributed() -> None:
    fsdp = {"devices": 8, "num_nodes": 2, "accelerator": "gpu", "strategy": {"_target_": "x"}}
    assert single_process(fsdp) == {"devices": 1, "num_nodes": 1, "accelerator": "gpu", "strategy": "auto"}


def test_a_call_and_an_error_survive_their_files(tmp_path: Path) -> None:
    call = StageCall("sft", f"{FAKE}.train", {"data": "d", "rate": 0.5}, "out", {"trainer": {"devices": 2}})
    call.save(tmp_path / "call.json")
    assert StageCall.load(tmp_path / "call.json") == call
    write_error(tmp_path / "error.json", DataError("bad", where=Path("a"), given=3))
    error = read_error(tmp_path / "error.json")
    assert isinstance(error, DataError) and error.where == "a" and error.given == "3" and error.fix is None
    assert json.loads((tmp_path / "error.json").read_text())["kind"] == "DataError"
