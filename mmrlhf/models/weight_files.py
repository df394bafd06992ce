"""The tensors that a checkpoint folder says it holds: its safetensors headers, without reading a tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmrlhf.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# what lies beside a policy's weights, and its entry for the weights that adapters were trained on
POLICY_FILE, BASE_DIGEST = "policy.json", "base_digest"
_SAMPLED = 64
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MERGE = "load the base with transformers, then PeftModel.from_pretrained(base, FOLDER).merge_and_unload()"


@dataclass(frozen=True)
class StoredTensor:
    """Type as safetensors writes it (`F32`, `BF16`) and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Read names, types and shapes of all tensors of a checkpoint folder.

    Raises:
        ModelError: no safetensors, an index that names absent shards or is no index, a file that is cut off.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        found |= read_header(file)
    return found


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a folder holds adapters (peft) on a base that lies elsewhere."""
    folder = Path(path)
    return (folder / ADAPTER_CONFIG).is_file() and not ((folder / WEIGHTS).is_file() or (folder / INDEX).is_file())


def base_of(path: str | Path) -> str | Path:
    """Where a checkpoint's own weights lie: there, or at the base of the adapters there; raises as `adapter_base`."""
    return adapter_base(Path(path)) if is_adapter_folder(path) else path


def adapter_base(folder: Path) -> str:
    """The checkpoint that a folder's adapters are for: a folder or hub id.

    Raises:
        ModelError: it is not named, is no longer there, or holds other weights than it did.
    """
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError("these adapters do not say which model they are for", where=folder / ADAPTER_CONFIG,
                         given=f"base_model_name_or_path={base!r}", expected="a folder or a hub id")  # fmt: skip
    fix = f"set base_model_name_or_path in {folder / ADAPTER_CONFIG} to the base that they were trained on"
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ModelError("the base of these adapters is not there", where=folder, given=base,
                         expected="the folder of the checkpoint that they were trained on", fix=fix)  # fmt: skip
    trained_on = read_json(folder / POLICY_FILE).get(BASE_DIGEST) if (folder / POLICY_FILE).is_file() else None
    if trained_on is not None and Path(base).is_dir() and weights_digest(Path(base)) != trained_on:
        raise ModelError(
            "these adapters were trained on another base", where=folder,
            given=f"{base}, whose weights have the digest {weights_digest(Path(base))}",
            expected=f"weights with the digest {trained_on}", fix=fix,
        )  # fmt: skip
    return base


def require_mergeable(path: str | Path, weights: str) -> None:
    """Raise ModelError for a folder of adapters whose base would be stored as `weights`, in fewer than 32 bits."""
    if is_adapter_folder(path) and weights != "float32":
        raise ModelError(
            "adapters are added to their base as it is loaded, which needs float32 weights",
            where=str(path),
            given=f"model.settings.weights={weights}",
            expected="weights=float32, or a merged model",
            fix="model.save=merged or both in the training that wrote them",
        )


def weights_digest(folder: Path) -> str:
    """Name a checkpoint folder's weights by names, types, shapes and the first numbers of every tensor."""
    hashed = hashlib.blake2b(digest_size=16)
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                tensor = opened.get_slice(name)
                hashed.update(f"{name} {tensor.get_dtype()} {tensor.get_shape()}".encode())
                first = tensor[:1] if tensor.get_shape() else opened.get_tensor(name)
                hashed.update(first.flatten()[:_SAMPLED].double().numpy().tobytes())
    return hashed.hexdigest()


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file; ModelError where the file is damaged or cut off."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return {name: StoredTensor(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            "this weight file is damaged or cut off",
            where=file,
            given=f"{file.stat().st_size if file.exists() else 0} bytes: {error}",
            expected="a whole safetensors file",
            fix="copy or download it again, and compare its size with the original's",
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, as transformers chooses them: `model.safetensors`, or an index's shards.

    Raises:
        ModelError: as `read_headers`.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise _without_weights(folder)
    names = sorted(set(_weight_map(folder / INDEX).values()))
    absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if absent:
        raise ModelError(
            "files that this checkpoint's index names are not there",
            where=folder / INDEX,
            given=f"{len(absent)} of {len(names)} absent: {some(absent)}",
            expected="every file that the index names, in the same folder",
            fix="copy or download the absent ones",
        )
    return [folder / name for name in names]


def some(names: list[str], number: int = 4) -> str:
    """The first few of many names."""
    return ", ".join(names[:number]) + (f" and {len(names) - number} more" if len(names) > number else "")


def _weight_map(index: Path) -> Mapping[str, str]:
    content = read_json(index)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(
            "this is no index of weight files",
            where=index,
            given="no usable weight_map",
            expected='{"weight_map": {tensor: file, ...}}, as save_pretrained writes it',
        )
    return names


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint folder; ModelError where it is none, or not UTF-8."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise ModelError(
            "this file of a checkpoint cannot be read", where=file, given=error, expected="a JSON object in UTF-8"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            "this file of a checkpoint holds no object",
            where=file,
            given=type(content).__name__,
            expected="a JSON object",
        )
    return content


def _without_weights(folder: Path) -> ModelError:
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if (folder / "adapter_config.json").is_file():
        return ModelError(
            "this folder holds adapters (peft), not a model",
            where=folder,
            given="adapter_config.json without model.safetensors",
            expected="a whole checkpoint",
            fix=f"merge them: {_MERGE}.save_pretrained(NEW); give NEW",
        )
    if pickled:
        return ModelError(
            "this checkpoint's weights are pickled, and unpickling runs whatever a file says",
            where=folder,
            given=some(pickled),
            expected=f"{WEIGHTS}, or shards with {INDEX}",
            fix="if you trust the file: AutoModelForImageTextToText.from_pretrained(FOLDER).save_pretrained(NEW); "
            "give NEW with the processor's files",
        )
    other = sorted(path.name for path in folder.glob("*.safetensors"))
    return ModelError(
        "this folder holds no weights",
        where=folder,
        given=f"neither {WEIGHTS} nor {INDEX}" + (f", but {some(other)}" if other else ""),
        expected="a folder written by save_pretrained (config.json, *.safetensors, processor files)",
        fix="copy the absent files" if other else "give the folder itself in model.path, or a hub id",
    )
