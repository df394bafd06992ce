"""What stands behind the routes: whether it takes queries, and work that nobody waits for any longer."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import Future
from typing import Any, cast

import pytest

from mmrlhf.inference.verdicts import Verdict
from mmrlhf.serving.batching import Batcher
from mmrlhf.serving.desk import Desk
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.reading import QueryReader
from mmrlhf.serving.refusals import Refusal


def desk(**limits: Any) -> Desk:
    return Desk("tiny", cast(QueryReader, None), Limits(**limits))


async def never(name: str, ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def at_once() -> None:
    await asyncio.sleep(0.01)  # so that what runs beside it has begun


def test_the_state_is_what_can_be_asked() -> None:
    found = desk()
    assert found.state == "loading"
    with pytest.raises(Refusal) as refusal:
        asyncio.run(found.judge([], ["a"]))
    assert (refusal.value.status, refusal.value.code) == (503, "loading")
    found.batcher = cast(Batcher, object())
    assert found.state == "ready"
    found.is_stopping = lambda: True
    assert found.state == "stopping"


@pytest.mark.parametrize(
    "verdict",
    [Verdict(math.nan, "", 0), Verdict(math.inf, "", 0), Verdict(1.0, "", 0, dimensions={"ethics": math.nan})],
)
def test_a_score_that_is_no_number_is_no_answer(verdict: Verdict) -> None:
    """On a dimension, too: in JSON it would be null, which a trainer takes for a number."""

    class Reader:
        async def read(self, messages: Any, responses: Any) -> None: ...

    class Scorer:
        def submit(self, group: Any) -> Future[list[Verdict]]:
            found: Future[list[Verdict]] = Future()
            found.set_result([Verdict(0.0, "", 0), verdict])
            return found

    asked = Desk("tiny", cast(QueryReader, Reader()), Limits())
    asked.batcher = cast(Batcher, Scorer())
    with pytest.raises(Refusal, match="not a finite number") as refusal:
        asyncio.run(asked.judge([], ["a", "b"]))
    assert refusal.value.status == 500


def test_work_ends_when_the_client_leaves() -> None:
    async def run() -> list[str]:
        ended: list[str] = []
        assert await desk().in_time(never("work", ended), at_once()) is None
        await asyncio.sleep(0)
        return list(ended)  # as it is before the loop ends what is left

    assert asyncio.run(run()) == ["work"]


def test_work_that_takes_too_long_ends_with_its_refusal() -> None:
    async def run() -> list[str]:
        ended: list[str] = []
        with pytest.raises(Refusal, match=r"no answer within 0.02 s \(limits.timeout\)") as refusal:
            await desk(timeout=0.02).in_time(never("work", ended), never("client", ended))
        assert refusal.value.status == 504
        await asyncio.sleep(0)
        return list(ended)  # as it is before the loop ends what is left

    assert sorted(asyncio.run(run())) == ["client", "work"]


def test_nobody_looks_for_the_client_of_work_that_is_done() -> None:
    async def run() -> list[str]:
        ended: list[str] = []

        async def work() -> int:
            await at_once()
            return 3

        assert await desk().in_time(work(), never("client", ended)) == 3
        await asyncio.sleep(0)
        return list(ended)  # as it is before the loop ends what is left

    assert asyncio.run(run()) == ["client"]
