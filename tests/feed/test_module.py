"""Exact resume is tested with a real Trainer: what a run saw and learnt after an interruption, against one without."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from stand_ins.fake_groups import make_dataset

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.module import PreferenceDataModule
from mmrlhf.feed.weights import Mixing
from mmrlhf.tensors import StepBatch


class Interrupted(Exception):
    pass


class Recorder(L.LightningModule):
    """Learns a number that depends on every step's content and order, and records what it saw."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen: list[tuple[int, int, tuple[str, ...]]] = []
        self.validated: list[tuple[str, ...]] = []
        self.stop_at = stop_at

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        if self.stop_at == len(self.seen):
            raise Interrupted
        keys = tuple(key for micro in batch.micro_batches for key in micro.keys)
        self.seen.append((batch.epoch, batch.step, keys))
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for micro in batch.micro_batches:
            value = (micro.group_weight[micro.group_of_token] * micro.input_ids).sum()
            self.manual_backward((self.weight.sin() * value + self.weight * 0.1).sum())
        optimizer.step()
        optimizer.zero_grad()

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        self.validated.append(tuple(key for micro in batch.micro_batches for key in micro.keys))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def make_data(num_workers: int = 0, **changes) -> PreferenceDataModule:
    options = {
        "train_indices": range(9),
        "val_indices": [9, 11, 10],
        "epochs": 2,
        "groups_per_step": 2,
        "token_budget": 12,
        "seed": 5,
    } | changes
    return PreferenceDataModule(make_dataset(12), num_workers=num_workers, **options)  # pyright: ignore


def make_trainer(folder: Path, *callbacks: L.Callback, **options) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks) or None,
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **options},
    )


class SaveEveryStep(L.Callback):
    """Saves where Lightning's own checkpoint callback does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Recorder:
    recorder = Recorder()
    make_trainer(tmp_path_factory.mktemp("whole")).fit(recorder, datamodule=make_data())
    return recorder


def test_one_pass_is_the_whole_run(undisturbed):
    """9 groups in steps of 2 are 5 steps an epoch; two epochs are steps 0 to 9."""
    assert [(epoch, step) for epoch, step, _ in undisturbed.seen] == [(s // 5, s) for s in range(10)]
    for epoch in range(2):
        seen = [key for e, _, keys in undisturbed.seen if e == epoch for key in keys]
        assert len(seen) == 10 and set(seen) == {f"g{i}" for i in range(9)}
    assert [sorted(keys) for keys in undisturbed.validated] == [["g11", "g9"], ["g10"]]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("stop_at", [1, 5, 7])
def test_an_interrupted_run_equals_an_undisturbed_one(stop_at, num_workers, tmp_path, undisturbed):
    first, second = Recorder(stop_at=stop_at), Recorder()
    with pytest.raises(Interrupted):
        make_trainer(tmp_path, SaveEveryStep(tmp_path)).fit(first, datamodule=make_data(num_workers))
    make_trainer(tmp_path).fit(
        second, datamodule=make_data(num_workers), ckpt_path=tmp_path / f"step={stop_at}.ckpt", weights_only=False
    )
    assert first.seen + second.seen == undisturbed.seen
    assert torch.equal(second.weight, undisturbed.weight)


def test_a_run_survives_several_interruptions_with_validation_in_between(tmp_path, undisturbed):
    seen, ckpt = [], None
    for stop_at in (3, 2, 4, None):
        recorder = Recorder(stop_at=stop_at)
        trainer = make_trainer(tmp_path, SaveEveryStep(tmp_path), val_check_interval=2)
        try:
            trainer.fit(recorder, datamodule=make_data(), ckpt_path=ckpt, weights_only=False)
        except Interrupted:
            pass
        seen += recorder.seen
        ckpt = tmp_path / f"step={len(seen)}.ckpt"
    assert seen == undisturbed.seen
    assert torch.equal(recorder.weight, undisturbed.weight)


def test_a_checkpoint_saved_while_an_exception_passes_is_exact(tmp_path, undisturbed):
    """The step that raised was not trained, although the loader had handed it out."""
    first, second = Recorder(stop_at=6), Recorder()
    trainer = make_trainer(tmp_path)
    with pytest.raises(Interrupted):
        trainer.fit(first, datamodule=make_data(num_workers=1))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    make_trainer(tmp_path).fit(second, datamodule=make_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert first.seen + second.seen == undisturbed.seen


def test_a_finished_run_has_nothing_left(tmp_path):
    trainer, recorder = make_trainer(tmp_path), Recorder()
    trainer.fit(Recorder(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    make_trainer(tmp_path).fit(recorder, datamodule=make_data(), ckpt_path=tmp_path / "end.ckpt", weights_only=False)
    assert recorder.seen == []


def test_the_state_is_small_and_plain():
    state = make_data().state_dict()
    assert set(state) == {"shards", "rows", "mixing", "seed", "groups_per_step", "epoch", "step"}
    assert len(repr(state)) < 200


def test_a_fresh_fit_begins_at_the_start_again():
    data = make_data()
    data.load_state_dict(data.state_dict() | {"step": 4})
    data.setup("fit")
    assert next(iter(data.train_dataloader())).step == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "seed: checkpoint 5, now 6"),
        ({"groups_per_step": 3}, "groups_per_step: checkpoint 2, now 3"),
        ({"train_indices": range(8)}, "rows: checkpoint"),
        ({"mixing": Mixing(shuffle_window=1)}, "mixing: checkpoint"),
        ({"mixing": Mixing(balance=["category"])}, "mixing: checkpoint"),
    ],
)
def test_resume_with_another_order_is_refused_naming_what_differs(changes, named):
    with pytest.raises(ConfigError, match=named):
        make_data(**changes).load_state_dict(make_data().state_dict())


def test_resume_with_other_shards_is_refused():
    other = PreferenceDataModule(
        make_dataset(12, digest="other"), train_indices=range(9), epochs=2, groups_per_step=2, token_budget=12, seed=5
    )
    with pytest.raises(ConfigError, match="shards: checkpoint"):
        other.load_state_dict(make_data().state_dict())


@pytest.mark.parametrize("changes", [{"token_budget": 100}, {"num_workers": 1}, {"epochs": 7}])
def test_resume_with_other_hardware_or_a_later_end_is_fine(changes):
    data = make_data(**changes)
    data.load_state_dict(make_data().state_dict() | {"step": 3})
    assert next(iter(data.train_dataloader())).step == 3


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(2, None, 10), (0.5, None, 3), (0.01, None, 1), (None, 7, 7), (2, 7, 7), (1, 7, 5), (0.6, None, 3)],
)
def test_total_steps(epochs, max_steps, expected):
    """5 steps an epoch; half an epoch is 2.5 steps, rounded up, and 0.6 of one exactly 3."""
    data = make_data(epochs=epochs, max_steps=max_steps)
    assert data.total_steps == len(data.train_dataloader()) == expected
    assert len(list(data.train_dataloader())) == expected


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"epochs": None}, ConfigError),
        ({"epochs": 0}, ConfigError),
        ({"epochs": None, "max_steps": 0}, ConfigError),
        ({"groups_per_step": 0}, ConfigError),
        ({"train_indices": []}, DataError),
    ],
)
def test_unusable_settings_are_refused(changes, error):
    with pytest.raises(error):
        make_data(**changes)


def test_more_than_one_epoch_of_the_trainer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_epochs"):
        make_trainer(tmp_path, max_epochs=2).fit(Recorder(), datamodule=make_data())


def test_a_run_without_held_out_groups(tmp_path):
    recorder = Recorder()
    make_trainer(tmp_path, limit_val_batches=0).fit(recorder, datamodule=make_data(val_indices=[]))
    assert len(recorder.seen) == 10 and recorder.validated == []


def test_damage_in_a_worker_reaches_the_user_as_a_data_error(tmp_path):
    dataset = make_dataset(12, damaged=frozenset(f"g{number}" for number in range(12)))
    data = PreferenceDataModule(
        dataset, train_indices=range(12), epochs=1, groups_per_step=2, token_budget=12, seed=5, num_workers=1
    )
    with pytest.raises(DataError, match="20 groups in a row cannot be read"):
        list(data.train_dataloader())


def test_iterating_leaves_the_run_s_random_numbers_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(make_data(epochs=1).train_dataloader())
    assert torch.equal(before, torch.get_rng_state())
