"""Settings of training that cannot train anything."""

from __future__ import annotations

import pytest

from mmrlhf.errors import ConfigError
from mmrlhf.models.settings import ModelSettings
from mmrlhf.stages import sft
from mmrlhf.training.settings import TrainSettings, require_trainable


def test_a_model_of_which_nothing_trains_is_refused() -> None:
    """All parts frozen; one that trains is enough."""
    frozen = TrainSettings(model=ModelSettings(vision="frozen", projector="frozen", language="frozen"))
    for check in (sft.check_settings, lambda settings: require_trainable(settings, "mmdpo")):
        with pytest.raises(ConfigError, match="nothing would train"):
            check({"training": frozen})
    require_trainable({"training": TrainSettings(model=ModelSettings(language="lora", projector="frozen"))}, "sft")
    require_trainable({}, "sft")
