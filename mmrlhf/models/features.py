"""Features of a frozen vision tower and projector on disk, so that later epochs and runs do not compute them again.

A file holds what the stock model's own `get_image_features` and `get_video_features` return for one query's media, and
goes back through its forward's own argument `mm_encoder_outputs`. It is named by the content of the tensors that the
processor made (so by pixels and the processor's settings), in a folder named by the weights and settings of the tower
and projector.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from mmrlhf.errors import ConfigError, DataError, ModelError
from mmrlhf.files import written
from mmrlhf.models.families import base_model, joined_media, parts, vision_modules
from mmrlhf.models.settings import ModelSettings
from mmrlhf.trees import named_leaves

# Encoders of a stock model, and the tensor without which there is nothing to encode.
_ENCODERS = {"image": ("get_image_features", "pixel_values"), "video": ("get_video_features", "pixel_values_videos")}
_FIELDS = ("pooler_output", "deepstack_features")
# One tensor for several pictures, a list with one each, or, for features of several depths, a list of such lists.
Features = Tensor | list[Any]


@dataclass
class EncoderOutput(ModelOutput):
    """What a stock forward reads off an encoder's output."""

    pooler_output: Any = None
    deepstack_features: Any = None


class VisionFeatures:
    """What the encoders of a backbone say about media, computed once and kept in files.

    Args:
        folder: where files are kept, for any number of models.
        backbone: its tower and projector must not train.
        settings: of the model.

    Raises:
        ConfigError: the tower or the projector trains.
        ModelError: this family's forward takes no precomputed features.
    """

    def __init__(self, folder: Path | str, backbone: PreTrainedModel, settings: ModelSettings) -> None:
        _check(backbone, settings)
        self._backbone = backbone
        self.folder = Path(folder) / _identity(backbone, settings)
        self.num_read = self.num_written = 0

    def __call__(self, media: Sequence[Mapping[str, Tensor]], num_images: Sequence[int]) -> dict[str, EncoderOutput]:
        """Encoder outputs of several groups' media, joined in their order: the stock forward's `mm_encoder_outputs`.

        Args:
            media: processor tensors of each group; num_images: pictures of each group.

        Raises:
            DataError: a damaged file.
        """
        # The rows layout names a group's media once for each response.
        once: dict[int, dict[str, Features]] = {}
        for group, count in zip(media, num_images, strict=True):
            if id(group) not in once:
                once[id(group)] = self._of_group(group, count)
        found = [once[id(group)] for group in media]
        joined: dict[str, Any] = {}
        for name in dict.fromkeys(name for features in found for name in features):
            modality, field = name.split(".")
            values = [features[name] for features in found if name in features]
            joined.setdefault(modality, {})[field] = _join_layers(values) if field == _FIELDS[1] else _join(values)
        return {modality: EncoderOutput(**fields) for modality, fields in joined.items()}

    def _of_group(self, media: Mapping[str, Tensor], num_images: int) -> dict[str, Features]:
        """Features of one group's media, named `image.pooler_output` and so on; read, or computed and written."""
        tensors = joined_media(self._backbone, [media], [num_images])
        if not tensors:
            return {}
        path = self.folder / f"{_digest(tensors)}.safetensors"
        if path.exists():
            self.num_read += 1
            return _nested(_read(path, next(iter(tensors.values())).device))
        features = self._compute(tensors)
        _write(path, {name: _stored(tensor) for name, tensor in named_leaves(features, "/")})
        self.num_written += 1
        return features

    @torch.no_grad()
    def _compute(self, tensors: Mapping[str, Tensor]) -> dict[str, Features]:
        base: Any = base_model(self._backbone)
        found: dict[str, Features] = {}
        for modality, (method, pixels) in _ENCODERS.items():
            if pixels not in tensors:
                continue
            encode = getattr(base, method)
            accepted = inspect.signature(encode).parameters
            output = encode(**{name: value for name, value in tensors.items() if name in accepted}, return_dict=True)
            for field in _FIELDS:
                value = getattr(output, field, None)
                if value is not None:
                    found[f"{modality}.{field}"] = _as_lists(value)
        return found


def bytes_per_token(config: Any, precision: str) -> int:
    """Predict what the features of one visual token take: as wide as the language model, once for each depth."""
    depths = len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
    return config.get_text_config().hidden_size * (1 + depths) * (2 if precision == "bf16" else 4)


def _check(backbone: PreTrainedModel, settings: ModelSettings) -> None:
    trained = [part for part in ("vision", "projector") if getattr(settings, part) != "frozen"]
    if trained:
        raise ConfigError(
            "features of pictures can only be kept while what makes them does not change",
            where="runtime.vision_cache_gib",
            given=", ".join(f"model.settings.{part}={getattr(settings, part)}" for part in trained),
            expected="model.settings.vision=frozen and model.settings.projector=frozen",
            fix="freeze both, or set runtime.vision_cache_gib=0",
        )
    if "mm_encoder_outputs" not in inspect.signature(base_model(backbone).forward).parameters:
        raise ModelError(
            "this model takes no precomputed features of pictures",
            where="runtime.vision_cache_gib",
            given=type(backbone).__name__,
            expected="a forward with the argument mm_encoder_outputs, as families of this project have in transformers",
            fix="set runtime.vision_cache_gib=0",
        )


def _identity(backbone: PreTrainedModel, settings: ModelSettings) -> str:
    """Name whatever decides what the encoders return for given pixels."""
    config = {name: value for name, value in backbone.config.to_dict().items() if not name.startswith("_")}
    # The language model has no say, nor has who wrote the file.
    for name in ("text_config", "transformers_version", "architectures", "dtype"):
        config.pop(name, None)
    frozen = parts(backbone)
    hashed = hashlib.blake2b(json.dumps([settings.precision, config], sort_keys=True, default=str).encode())
    for tensor in (
        *frozen["vision"],
        *frozen["projector"],
        *(b for m in vision_modules(backbone) for b in m.buffers()),
    ):
        _feed(hashed, tensor.detach())
    return hashed.hexdigest()[:32]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        hashed.update(name.encode())
        _feed(hashed, tensors[name])
    return hashed.hexdigest()


def _feed(hashed: Any, tensor: Tensor) -> None:
    hashed.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    hashed.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())


def _join(values: Sequence[Features]) -> Features:
    if isinstance(values[0], Tensor):
        return torch.cat([value for value in values if isinstance(value, Tensor)])
    return [each for value in values for each in value]


def _join_layers(values: Sequence[Features]) -> Features:
    return [_join(layer) for layer in zip(*values, strict=True)]


def _as_lists(value: Any) -> Features:
    return value if isinstance(value, Tensor) else [_as_lists(each) for each in value]


def _stored(tensor: Tensor) -> Tensor:
    """A tensor as a file keeps it, sharing no memory with another."""
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, Features]:
    """Mappings and lists again of tensors that are named by their path: `image.deepstack_features/0/2`."""
    found: dict[str, Any] = {}
    for name in sorted(tensors, key=lambda path: [int(part) if part.isdigit() else part for part in path.split("/")]):
        first, *numbers = name.split("/")
        if not numbers:
            found[first] = tensors[name]
            continue
        place = found.setdefault(first, [])
        for number in map(int, numbers[:-1]):
            if number == len(place):
                place.append([])
            place = place[number]
        place.append(tensors[name])
    return found


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file that is there in full or not at all, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as part:
        save_file(tensors, part)


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise DataError(
            "a file of vision features is damaged",
            where=path,
            given=str(error),
            fix="delete it: it is computed again",
        ) from error
