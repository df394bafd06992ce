"""Who answers, from what a setting says: a checkpoint by its folder or hub id, or whoever the setting describes."""

from __future__ import annotations

from pathlib import Path

from mmrlhf.inference.settings import PassSettings
from mmrlhf.responders.asking import Answerer
from mmrlhf.responders.checkpoint import CheckpointAnswerer
from mmrlhf.responders.endpoint import EndpointAnswerer


def answerer_of(policy: Path | str | EndpointAnswerer, passes: PassSettings) -> Answerer:
    """A checkpoint's folder or hub id as whoever answers; an endpoint is that already."""
    return policy if isinstance(policy, EndpointAnswerer) else CheckpointAnswerer(policy, passes)
