"""What a Hugging Face hub says about a repository, without fetching it; and what a user without a hub can do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client that this hub library uses: # pyright: ignore[reportPrivateImportUsage]
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from mmrlhf.errors import ConfigError, HubError, Lines, UserError
from mmrlhf.files import expanded
from mmrlhf.text import first_line

log = logging.getLogger(__name__)

OWN_FOLDERS = (
    "data.root=DIR     a folder in the released layout: data.jsonl and/or dpo_pairs.jsonl, with long/ short/ mcq/ "
    "safety/ video/ beside them",
    "model.path=DIR    a checkpoint folder of the experiment's model: config.json, *.safetensors, tokenizer and "
    "processor files",
)
_SECONDS_TO_ANSWER = 6.0
# what transformers loads of a checkpoint; a repository may hold the same weights in other formats, too
_LOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@lru_cache(maxsize=64)
def check_checkpoint(repo_id: str) -> None:
    """Make sure that a checkpoint can be had before anything runs, and log how much has to be fetched for it.

    One that is in the hub library's cache needs no hub. Asked once in a process.

    Raises:
        HubError: not in the cache, and no hub has it or can be reached.
        UserError: the disk is too small for it.
    """
    try:
        with hub_errors(repo_id):
            info = _ask(repo_id)
    except HubError as error:
        if isinstance(try_to_load_from_cache(repo_id, "config.json"), str):
            log.info("%s: taken from the cache, as no hub answers", repo_id)
            return
        raise HubError(
            f"there is no folder of this name here, and {error.problem}",
            where=error.where,
            given=error.given,
            fix=error.fix,
        ) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = list(filter_repo_objects(sizes, allow_patterns=list(_LOADED)))
    missing = sum(sizes[name] for name in wanted if not _is_cached(repo_id, name, info.sha))
    if not missing:
        return
    free = free_bytes(Path(constants.HF_HUB_CACHE))
    log.info("%s: %s to fetch, %s free in the cache", repo_id, format_bytes(missing), format_bytes(free))
    if missing > free:
        raise UserError(
            f"{repo_id} does not fit on the disk",
            where=constants.HF_HUB_CACHE,
            given=f"{format_bytes(free)} free",
            expected=format_bytes(missing),
            fix="set the environment variable HF_HOME to a folder on a larger disk",
        )


def file_beside(checkpoint: str | Path, name: str) -> Path | None:
    """A file that lies beside a checkpoint's weights, in its folder or in its hub repository; None: there is none.

    Where no hub answers, what is in the hub library's cache decides.

    Raises:
        HubError: it is there, and does not arrive.
    """
    folder, repo_id = expanded(checkpoint), str(checkpoint)
    if folder.exists():
        return folder / name if (folder / name).is_file() else None
    try:
        with hub_errors(repo_id):
            there = {file.rfilename for file in _ask(repo_id).siblings or []}
    except HubError:
        cached = try_to_load_from_cache(repo_id, name)
        found = Path(cached) if isinstance(cached, str) else None
        log.info("%s: no hub answers; its %s is %s the cache", repo_id, name, "in" if found else "not in")
        return found
    if name not in there:
        return None
    with hub_errors(repo_id):
        return Path(HfApi().hf_hub_download(repo_id, name))


def _ask(repo_id: str) -> ModelInfo:
    """What the hub says about a repository, with its files; raises what the hub library raises, soon."""
    return HfApi().model_info(repo_id, revision="main", files_metadata=True, timeout=_SECONDS_TO_ANSWER)


def _is_cached(repo_id: str, name: str, commit: str | None) -> bool:
    return isinstance(try_to_load_from_cache(repo_id, name, revision=commit), str)


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn the hub library's errors into one screen that says how to go on without the hub."""
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(
            "this is not a hub id", where="repo_id", given=repo_id, expected="owner/name", fix=str(error)
        ) from error
    except (HTTPError, OSError) as error:
        if not isinstance(error, HTTPError | ConnectionError) and error.errno is not None:
            raise  # a full disk or a folder without write permission is no fault of the hub
        raise HubError(
            _reason(error, repo_id, revision),
            where=repo_id,
            given=first_line(error),
            fix=Lines(("give your own copies instead; both work without any network:", *OWN_FOLDERS)),
        ) from error


def _reason(error: Exception, repo_id: str, revision: str | None) -> str:
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: ask for access on its page, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no repository {repo_id}, or it is private and this machine is not logged in"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'}"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered with HTTP status {error.response.status_code}"
    return "the hub cannot be reached from this machine"


def format_bytes(number: int) -> str:
    """Write a number of bytes for a person: 1536 -> '1.5 KB'."""
    value, units = float(number), ["bytes", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
