"""Load a stock checkpoint: its family, all of its weights and its processor, or an error that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging

from mmrlhf.errors import HubError, ModelError, UserError
from mmrlhf.models.attention import require_plain
from mmrlhf.models.families import check_packable
from mmrlhf.models.loading_info import check_loading
from mmrlhf.models.masks import attention_pattern
from mmrlhf.models.processors import UNREADABLE, check_vocabulary, load_processor
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.storage import StorageConfig, check_storage, settle_storage
from mmrlhf.models.weight_files import (
    ADAPTER_WEIGHTS,
    base_of,
    is_adapter_folder,
    read_header,
    read_headers,
    read_json,
    require_mergeable,
)
from mmrlhf.text import first_line

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def context_length(settings: ModelSettings, config: Any) -> int:
    """The longest sequence: what the settings say, else what the checkpoint's language model has positions for.

    Raises:
        ModelError: neither says.
    """
    if settings.max_tokens is not None:
        return settings.max_tokens
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise ModelError(
            "this checkpoint does not say how long a sequence may be",
            given=f"{config.model_type}: max_position_embeddings={positions}",
            expected="a number of tokens",
            fix="set model.settings.max_tokens",
        )
    return positions


def checkpoint_context(path: str | Path, settings: ModelSettings) -> int:
    """`context_length` of a checkpoint that is not loaded; raises as that, and HubError."""
    return context_length(settings, load_config(path))


def load_backbone(path: str | Path, settings: ModelSettings) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a checkpoint and its processor from a folder or the hub; code that lies beside it is never run.

    Raises:
        HubError: where the hub cannot be reached.
        ConfigError: weights that cannot be stored as `settings.weights` says.
        ModelError: a folder that is no checkpoint, weights that are not exactly its model's, a processor that does not
            fit, another family than `settings.family`, or layers that cannot be packed.
    """
    check_storage(settings)
    require_mergeable(path, settings.weights)
    backbone, processor = _load(base_of(path), settings, "cpu"), load_processor(path)
    if is_adapter_folder(path):
        backbone = _merge(backbone, Path(path))
    _check_loaded(backbone, processor, settings, path)
    return backbone, processor


def _check_loaded(backbone: PreTrainedModel, processor: ProcessorMixin, settings: ModelSettings, path: object) -> None:
    """Refuse a model that cannot be read as the settings say, or not with this processor; raises as `load_backbone`."""
    _check_head(backbone, path)
    reason = check_packable(backbone)
    if reason and settings.layout == "packed":
        raise ModelError(
            "this model cannot read a packed row", where=str(path), given=reason, fix="set model.settings.layout=rows"
        )
    check_vocabulary(backbone.config, processor, _num_rows(backbone), where=path)


def _merge(backbone: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A base with a folder's adapters added to its weights; ModelError where they do not fit."""
    from peft import PeftModel  # as in `trainable.with_adapters`

    read_header(folder / ADAPTER_WEIGHTS)
    try:
        return cast(PreTrainedModel, PeftModel.from_pretrained(backbone, str(folder)).merge_and_unload())
    except UNREADABLE as error:
        raise ModelError(
            "these adapters do not fit their base",
            where=folder,
            given=f"{type(error).__name__}: {first_line(error)}",
            expected="adapters of peft for the model that adapter_config.json names",
        ) from error


def check_folder(path: str | Path, settings: ModelSettings) -> None:
    """Find out whether `load_backbone` would load a folder, without holding its weights.

    Raises ModelError, as `load_backbone`, and ConfigError for attention that its layers have not.
    """
    require_mergeable(path, settings.weights)
    backbone, processor = _load(base_of(path), settings, "meta"), load_processor(path)
    if is_adapter_folder(path):
        read_header(Path(path) / ADAPTER_WEIGHTS)
    _check_loaded(backbone, processor, settings, path)
    if settings.layout != "rows":
        require_plain(settings.attention, attention_pattern(backbone.config))


def _load(
    path: str | Path, settings: ModelSettings, device: str, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model alone, all of whose weights come from its checkpoint; on `meta` they are looked at and dropped."""
    check_family(path, settings)
    compact = settings.weights != "float32" and device != "meta"
    stored = StorageConfig(settings) if compact else None  # pyright: ignore[reportArgumentType]: its base is a dataclass
    if stored is not None:
        _load(path, settings, "meta")  # tensors that do not fit are named before any of them is quantised
    if Path(path).is_dir():
        read_headers(Path(path))
    try:
        with _without_report():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation="sdpa",
                device_map=device if device != "cpu" else None,
                quantization_config=stored,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named by `check_loading`
                use_safetensors=True,
                trust_remote_code=False,
            )
    except UserError:
        raise
    except UNREADABLE as error:
        raise ModelError(
            "this checkpoint cannot be loaded",
            where=str(path),
            given=f"{type(error).__name__}: {first_line(error)}",
            expected="config.json, safetensors and processor files of a transformers image-text-to-text model",
        ) from error
    backbone, info = loaded
    check_loading(info, total=len(backbone.state_dict()), model=type(backbone).__name__, where=path)
    if stored is not None:
        settle_storage(backbone)
    return backbone


def stock_weights(path: str | Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """A checkpoint's own weights on the host, under its model's names, in a number type; raises as `load_backbone`."""
    return _load(path, ModelSettings(), "cpu", dtype).state_dict()


def load_tensors(tensors: Mapping[str, Tensor], config: Any, *, where: object) -> PreTrainedModel:
    """Make the model of a config from tensors under a checkpoint's names, in their own number type.

    Raises:
        ModelError: they are not exactly the model's.
    """
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    dtype = next((value.dtype for value in tensors.values() if value.is_floating_point()), torch.float32)
    with _without_report():
        backbone, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_loading(info, total=len(backbone.state_dict()), model=type(backbone).__name__, where=where)
    return backbone


def _check_head(backbone: PreTrainedModel, path: object) -> None:
    """Refuse logits that are more than a linear map of the hidden states: log-probabilities here would be others."""
    cap = getattr(backbone.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        raise ModelError(
            "this model caps its logits, which is not done here: its log-probabilities would be wrong",
            where=str(path),
            given=f"final_logit_softcapping={cap}",
            expected="null, as in the families of docs/families.md",
        )


@contextmanager
def _without_report() -> Iterator[None]:
    """Leave out transformers' own table of the tensors that do not fit; `check_loading` says it in a few lines."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _num_rows(backbone: PreTrainedModel) -> int:
    embedding: Any = backbone.get_input_embeddings()
    return embedding.weight.shape[0]


def stored_dtype(path: str | Path) -> torch.dtype:
    """The number type of a checkpoint's files, as `from_pretrained` chooses it: the config's, else the first tensor's.

    Raises HubError and ModelError, as `load_backbone`.
    """
    named = load_config(path).dtype
    if isinstance(named, torch.dtype):
        return named
    folder = Path(base_of(path))
    stored = (tensor.dtype for tensor in read_headers(folder).values()) if folder.is_dir() else ()
    return next((_FLOATS[name] for name in stored if name in _FLOATS), torch.float32)


def check_family(path: str | Path, settings: ModelSettings) -> None:
    """Read a checkpoint's config and compare its family with the wanted one; cheap, no weights are read.

    Raises HubError and ModelError, as `load_backbone`.
    """
    config = load_config(path)
    _refuse_quantised(path, config)
    if settings.family and config.model_type != settings.family:
        raise ModelError(
            "a checkpoint of another family",
            where=str(path),
            given=f"model_type {config.model_type!r}",
            expected=f"{settings.family!r} (model.settings.family)",
            fix="choose the matching `model=` group, or another model.path",
        )


def _refuse_quantised(path: str | Path, config: Any) -> None:
    """Weights in few bits are made while loading, from whole ones: those of another tool are not read."""
    known = getattr(config, "quantization_config", None)
    if known is not None:
        raise ModelError(
            "a checkpoint whose weights another tool has quantised",
            where=str(path),
            given=f"quantization_config of its config.json: {first_line(known)[:80]}",
            expected="whole weights (float32, bfloat16 or float16)",
            fix="give the checkpoint that it was made from; model.settings.weights=nf4 or int8 quantises while loading",
        )


def load_config(path: str | Path) -> Any:
    """Read a checkpoint's config; HubError and ModelError as `load_backbone`."""
    if Path(path).exists():
        if not (Path(path) / "config.json").is_file():
            raise ModelError(
                "this folder is not a model checkpoint",
                where=str(path),
                given="no config.json in it",
                expected="a folder written by save_pretrained (config.json, *.safetensors, processor files)",
                fix=_fix_without_config(Path(path)),
            )
        read_json(Path(path) / "config.json")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"neither a folder on this machine nor reachable on the hub: {path}",
            where=str(path),
            given=first_line(error),
            expected="a hub id that can be fetched now, or a folder with the checkpoint",
            fix="download the checkpoint where there is a network, and give its folder in place of this name",
        ) from error
    except UNREADABLE as error:
        raise ModelError(
            "unknown model type",
            where=str(path),
            given=f"{type(error).__name__}: {first_line(error)}",
            expected="a model_type that this transformers knows; code in the folder is not run",
        ) from error
    return config


def _fix_without_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "these are adapters (peft): merge them into their base and give the merged model's folder"
    return "give the folder itself in model.path, or a hub id"
