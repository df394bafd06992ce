"""What a stage is given of the machine."""

from __future__ import annotations

from functools import partial

from mmrlhf.chain.runtime import Runtime


def test_the_machine_is_what_the_trainer_would_be_called_with() -> None:
    assert Runtime(trainer=partial(dict, accelerator="gpu", devices=2)).machine == {"accelerator": "gpu", "devices": 2}
    assert Runtime(trainer=dict).machine == {}, "a class says nothing, and Lightning chooses"  # type: ignore[arg-type]
