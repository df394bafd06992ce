"""The budget of damaged groups holds over all ranks and restarts, and every rank stops in the same step."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.callbacks import quarantined_groups
from mmrlhf.callbacks.quarantined_groups import QuarantinedGroups
from mmrlhf.errors import DataError
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.tensors import StepBatch

MODULE = L.LightningModule()


class Ranks:
    """Runs one callback for each rank in threads that exchange values at a barrier, as ranks do."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=20)
        self._values: list[Any] = [None] * size

    def gather(self, value: Any) -> list[Any]:
        self._values[int(threading.current_thread().name)] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found

    def run(
        self, callbacks: Sequence[QuarantinedGroups], steps: Sequence[Sequence[tuple[str, ...]]]
    ) -> list[int | None]:
        """steps: each rank's damaged keys in each step; returns the step in which each rank was stopped."""
        stopped: list[int | None] = [None] * self.size
        strategy = SimpleNamespace(reduce_boolean_decision=lambda flag, all: any(self.gather(flag)))

        def be(rank: int) -> None:
            for number, keys in enumerate(steps):
                trainer: Any = SimpleNamespace(strategy=strategy, global_step=number)
                try:
                    hook = callbacks[rank].on_validation_batch_end if number % 2 else callbacks[rank].on_train_batch_end
                    hook(
                        trainer,
                        MODULE,
                        None,
                        StepBatch(0, number, (), 0, quarantined=dict.fromkeys(keys[rank], "damaged")),
                        0,
                    )
                except DataError:
                    stopped[rank] = number
                    return

        threads = [threading.Thread(target=be, args=(rank,), name=str(rank)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return stopped


KEYS = st.sampled_from("abcdefgh").map(lambda key: (key,)) | st.just(())


@settings(max_examples=30)
@given(data=st.data(), size=st.integers(1, 4), cut=st.integers(0, 6))
def test_the_budget_is_of_distinct_groups_over_ranks_and_restarts(data, size, cut) -> None:
    """0.1% of 3,000 groups are 3; whichever ranks meet them, the step with the fourth key stops all."""
    steps = data.draw(st.lists(st.lists(KEYS, min_size=size, max_size=size), min_size=1, max_size=8))
    seen: set[str] = set()
    expected = None
    for number, keys in enumerate(steps):
        seen.update(*keys)
        if len(seen) > 3:
            expected = number
            break
    callbacks = [QuarantinedGroups(Quarantine(3000)) for _ in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        ranks = Ranks(size)
        patch.setattr(quarantined_groups, "gather_ranks", ranks.gather)
        first = ranks.run(callbacks, steps[:cut])
        if first[0] is None:
            saved = callbacks[0].state_dict()
            callbacks = [QuarantinedGroups(Quarantine(3000)) for _ in range(size)]
            for callback in callbacks:
                callback.load_state_dict(saved)
            found = [None if step is None else step + cut for step in ranks.run(callbacks, steps[cut:])]
        else:
            found = first
    assert found == [expected] * size
    assert all(sorted(callback.quarantine.reasons) == sorted(seen) for callback in callbacks)


def test_one_damaged_group_never_stops_a_run(monkeypatch) -> None:
    ranks = Ranks(1)
    monkeypatch.setattr(quarantined_groups, "gather_ranks", ranks.gather)
    assert ranks.run([QuarantinedGroups(Quarantine(10))], [[("a",)], [("a",)]]) == [None]
    assert ranks.run([QuarantinedGroups(Quarantine(10))], [[("a",)], [("b",)]]) == [1]


def test_the_error_names_groups_and_numbers() -> None:
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(reduce_boolean_decision=lambda flag, all: flag), global_step=7
    )
    batch = StepBatch(0, 0, (), 0, quarantined={"k1": "torn", "k2": "torn"})
    with pytest.raises(
        DataError, match=r"too many queries(?s:.)*up to step 7(?s:.)*2 of 900 queries: 2 x torn .k1, k2."
    ):
        QuarantinedGroups(Quarantine(900)).on_train_batch_end(trainer, MODULE, None, batch, 0)
