"""Whether a training stage keeps features of pictures on disk (`runtime.vision_cache_gib`), and how much they take."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.models.features import VisionFeatures, bytes_per_token
from mmrlhf.models.forward import PackedModel
from mmrlhf.shards.index import Index
from mmrlhf.tokens.encode import Encoder

log = logging.getLogger(__name__)

GIB = 2**30


def keep_features(model: PackedModel, index: Index, rows: Iterable[int], encoder: Encoder, runtime: Runtime) -> None:
    """Have a model keep features of the pictures in some rows of an index, if the runtime gives it room for them.

    Raises:
        ConfigError: the tower or projector trains, or the features of all rows would need more than the room given or
            than the disk has; nothing has been written then.
        ModelError: the model cannot take precomputed features.
    """
    if not runtime.vision_cache_gib:
        return
    features = VisionFeatures(runtime.vision_cache, model.backbone, model.settings)
    copies = 1 if encoder.damage is None else 2
    tokens = copies * sum(encoder.visual.estimate(index.entries[int(row)]) for row in rows)
    predicted = tokens * bytes_per_token(model.backbone.config, model.settings.precision) / GIB
    there = sum(path.stat().st_size for path in features.folder.glob("*.safetensors")) / GIB
    free = shutil.disk_usage(_existing(features.folder)).free / GIB
    if predicted > min(runtime.vision_cache_gib, free + there):
        raise ConfigError(
            "there is no room to keep the features of all pictures",
            where="runtime.vision_cache_gib",
            given=f"about {predicted:.2f} GiB for {tokens:,} visual tokens",
            expected=f"at most {runtime.vision_cache_gib:g} GiB, with {free:.2f} GiB free in {features.folder}",
            fix="raise runtime.vision_cache_gib, choose another disk (runtime.vision_cache), or set it to 0",
        )
    log.info("features of pictures are kept in %s: about %.2f GiB, %.2f there", features.folder, predicted, there)
    model.vision_features = features


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
