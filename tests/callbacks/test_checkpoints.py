"""Checkpoints: whole or absent, exact resume, SIGTERM, sharded folders in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from stand_ins.toy_training import Numbers, Toy, build_trainer

from mmrlhf.callbacks import checkpoints
from mmrlhf.callbacks.checkpoints import (
    COMMIT,
    StepCheckpoint,
    commit,
    committed_checkpoints,
    latest_checkpoint,
)
from mmrlhf.callbacks.preemption import Preemption
from mmrlhf.processes import PREEMPTION, TrainingInterrupted


class Act(L.Callback):
    """Does something in the middle of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.action()


def train(folder, *, steps=10, every=3, act=None, resume=None, keep=2):
    module = Toy()
    with Preemption() as preemption:
        checkpoint = StepCheckpoint(folder, preemption, every_steps=every, keep=keep)
        trainer = build_trainer([preemption, checkpoint] + ([act] if act else []))
        trainer.fit(module, datamodule=Numbers(steps), ckpt_path=resume)
    return module, trainer


def test_saves_every_few_steps_and_at_the_end_and_keeps_two(tmp_path):
    train(tmp_path / "checkpoints")
    names = [path.name for path in committed_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000009.ckpt", "step-00000010.ckpt"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names, "no .tmp left"
    assert latest_checkpoint(tmp_path / "checkpoints").name == names[-1]


def test_nothing_to_find(tmp_path):
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("crash_at", [1, 4, 7, 9])
def test_resume_after_a_crash_is_exact(tmp_path, crash_at):
    """Steps seen and the final weight equal those of a run that never stopped, to the bit."""
    whole, _ = train(tmp_path / "whole")

    def fail():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", act=Act(crash_at, fail))
    newest = latest_checkpoint(tmp_path / "cut")
    first = crash_at // 3 * 3
    assert (newest is None) == (first == 0)
    resumed, trainer = train(tmp_path / "cut", resume=newest)
    assert resumed.seen == [float(step) for step in range(first, 10)]
    assert torch.equal(resumed.weight, whole.weight) and trainer.global_step == 10


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    whole, _ = train(tmp_path)
    again, _ = train(tmp_path, resume=latest_checkpoint(tmp_path))
    assert again.seen == [] and torch.equal(again.weight, whole.weight)


@pytest.mark.parametrize("number", PREEMPTION, ids=lambda number: number.name)
def test_a_signal_saves_the_step_once_and_stops(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=f"{number.name} after step 5"):
        train(tmp_path / "cut", act=Act(4, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) == before, "the handler is put back"
    assert [path.name for path in committed_checkpoints(tmp_path / "cut")] == [
        "step-00000003.ckpt", "step-00000005.ckpt"
    ]  # fmt: skip
    resumed, _ = train(tmp_path / "cut", resume=latest_checkpoint(tmp_path / "cut"))
    whole, _ = train(tmp_path / "whole")
    assert resumed.seen == [5.0, 6.0, 7.0, 8.0, 9.0] and torch.equal(resumed.weight, whole.weight)


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path, act=Act(4, twice))
    assert signal.getsignal(signal.SIGINT) == before
    assert latest_checkpoint(tmp_path).name == "step-00000003.ckpt"


def test_a_file_that_was_cut_off_does_not_count(tmp_path, caplog):
    train(tmp_path)
    newest = latest_checkpoint(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    assert latest_checkpoint(tmp_path).name == "step-00000009.ckpt" and "cut off" in caplog.text


class Validated(Numbers):
    """With one step of validation."""

    def val_dataloader(self):
        return [torch.zeros(1)]


class Watched(Toy):
    """Counts its validations, and does something in one."""

    def __init__(self, during=None):
        super().__init__()
        self.validations, self.during = 0, during

    def validation_step(self, batch, batch_idx):
        self.validations += 1
        if self.during:
            self.during()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def train_watched(folder, act=None, during=None, steps=4):
    module = Watched(during)
    with Preemption() as preemption:
        trainer = build_trainer([preemption, StepCheckpoint(folder, preemption), *([act] if act else [])])
        trainer.fit(module, datamodule=Validated(steps), ckpt_path=latest_checkpoint(folder))
    return module


def test_a_signal_in_the_last_step_saves_it_and_stops_without_validating(tmp_path):
    with pytest.raises(TrainingInterrupted, match="SIGTERM after step 4"):
        train_watched(tmp_path / "cut", act=(last := Watch(3, terminate)))
    assert last.validations == 0
    whole, resumed = train_watched(tmp_path / "whole"), train_watched(tmp_path / "cut")
    assert resumed.seen == [] and torch.equal(resumed.weight, whole.weight)
    assert resumed.validations <= whole.validations == 1


def test_a_signal_in_the_final_validation_stops_behind_it(tmp_path):
    with pytest.raises(TrainingInterrupted, match="SIGTERM after step 4"):
        train_watched(tmp_path / "cut", during=terminate)
    assert latest_checkpoint(tmp_path / "cut").name == "step-00000004.ckpt"
    whole, resumed = train_watched(tmp_path / "whole"), train_watched(tmp_path / "cut")
    assert resumed.seen == [] and torch.equal(resumed.weight, whole.weight)


def test_a_stop_does_not_wait_for_a_validation(tmp_path):
    """Lightning validates when it is told to stop; a cluster may not leave that much time."""
    with pytest.raises(TrainingInterrupted, match="after step 2"):
        train_watched(tmp_path, act=(early := Watch(1, terminate)))
    assert early.validations == 0


class Watch(Act):
    """Acts in a step, and counts the validations that begin to count."""

    validations = 0

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validations += 1


def test_a_signal_before_the_first_step_is_not_left_to_lightning(tmp_path):
    """Another callback's start may take minutes (answers of step 0); Lightning would end the process with code 0."""

    class Slow(L.Callback):
        def on_train_start(self, trainer, pl_module):
            terminate()
            assert not trainer.received_sigterm

    with pytest.raises(TrainingInterrupted, match="SIGTERM after step 1"):
        train_watched(tmp_path, act=Slow())


def test_a_crash_while_saving_leaves_the_older_one(tmp_path, monkeypatch):
    def fail(partial, final):
        raise OSError("disk full")

    train(tmp_path, steps=3, every=None)
    monkeypatch.setattr(checkpoints, "commit", fail)
    with pytest.raises(OSError, match="disk full"):
        train(tmp_path, steps=9, every=4)
    assert [path.name for path in committed_checkpoints(tmp_path)] == ["step-00000003.ckpt"]
    assert list(tmp_path.glob("*.tmp"))
    monkeypatch.undo()
    train(tmp_path, steps=4, every=None)
    assert not list(tmp_path.glob("*.tmp")), "the next run clears what was left"


def make_sharded(folder, step):
    partial, final = folder / f"step-{step:08d}.ckpt.tmp", folder / f"step-{step:08d}.ckpt"
    (partial / "inner").mkdir(parents=True)
    (partial / "__0_0.distcp").write_bytes(b"x" * step)
    (partial / "inner" / "meta.pt").write_bytes(b"y")
    commit(partial, final)
    return final


def test_a_sharded_folder_counts_only_when_committed_and_whole(tmp_path, caplog):
    old, new = make_sharded(tmp_path, 5), make_sharded(tmp_path, 8)
    assert json.loads((new / COMMIT).read_text()) == {"__0_0.distcp": 8, "inner/meta.pt": 1}
    assert latest_checkpoint(tmp_path) == new
    (new / "__0_0.distcp").write_bytes(b"short")
    assert latest_checkpoint(tmp_path) == old and "__0_0.distcp" in caplog.text
    (old / COMMIT).unlink()
    assert latest_checkpoint(tmp_path) is None


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="every_steps"):
        StepCheckpoint(tmp_path, Preemption(), every_steps=0)


TWO_RANKS = """
import os, signal, sys, torch, lightning as L
sys.path.insert(0, {tests!r})
from stand_ins.toy_training import Numbers, Toy, build_trainer
from torch.distributed.fsdp import fully_shard
from lightning.pytorch.strategies import ModelParallelStrategy
from mmrlhf.callbacks.checkpoints import StepCheckpoint, latest_checkpoint
from mmrlhf.processes import TrainingInterrupted, leave_group
from mmrlhf.callbacks.preemption import Preemption

class Sharded(Toy):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
    def configure_model(self):
        if {sharded} and not hasattr(self, "_done"):
            self._done = True
            fully_shard(self, mesh=self.device_mesh["data_parallel"])
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(((self.weight - batch.mean()) ** 2).sum())
        optimizer.step()
        self.seen.append(float(batch.mean()))

class Interrupt(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == {at} and trainer.global_rank == 1:
            os.kill(os.getpid(), {number})

def say(line):
    # whole lines: two ranks share the pipe
    os.write(1, f"{{line}}\\n".encode())


if __name__ == "__main__":
    module = Sharded()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    strategy = strategy if {sharded} else "ddp"
    preemption = Preemption()
    callbacks = [preemption, StepCheckpoint({folder!r}, preemption, every_steps=2), Interrupt()]
    trainer = build_trainer(callbacks, devices=2, strategy=strategy)
    try:
        with preemption:
            trainer.fit(module, datamodule=Numbers(6), ckpt_path=latest_checkpoint({folder!r}))
        weight = module.weight.full_tensor() if {sharded} else module.weight
        say(f"finished {{trainer.global_rank}} {{module.seen}} {{weight.tolist()}}")
    except TrainingInterrupted as stop:
        say(f"interrupted {{stop}}")
    leave_group()
"""


def run_two_ranks(folder, at, launcher, number=signal.SIGTERM):
    sharded = launcher == "torchrun"
    script = folder.parent / "script.py"
    names = {"tests": str(Path(__file__).parents[1]), "folder": str(folder)}
    script.write_text(TWO_RANKS.format(**names, at=at, number=int(number), sharded=sharded))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if sharded else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *torchrun, str(script)], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if "finished" in line or "interrupted" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "number"), [("torchrun", signal.SIGTERM), ("lightning", signal.SIGUSR1)])
def test_two_ranks_agree_on_a_signal_to_one_of_them(tmp_path, launcher, number):
    """The signal reaches rank 1 only, in the third step: both save step 3 and stop; resumed, they end as if never cut.

    torchrun starts sharded ranks (FSDP2, a folder), Lightning plain ones (DDP, a file).
    """
    whole = run_two_ranks(tmp_path / "whole", -1, launcher)
    stopped = run_two_ranks(tmp_path / "cut", 2, launcher, number)
    assert len(stopped) == 2 and all("interrupted" in line and "step 3" in line for line in stopped)
    found = latest_checkpoint(tmp_path / "cut")
    assert found.name == "step-00000003.ckpt" and found.is_dir() == (launcher == "torchrun")
    resumed = run_two_ranks(tmp_path / "cut", -1, launcher)
    assert sorted(line.split("]", 1)[1] for line in resumed) == sorted(line.split("]", 1)[1] for line in whole)
    assert all("[3.0, 4.0, 5.0]" in line for line in resumed)
