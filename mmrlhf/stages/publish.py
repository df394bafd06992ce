"""Stage `publish`: a trained model or a packed data set goes to a Hugging Face hub.

`python run.py stage=publish inputs.publish=FOLDER publish.repo=OWNER/NAME` says what would be sent, how large it is and
where it would go; `publish.confirm=true` sends it. What was published is not taken back by a rerun: each run of this
stage is another commit of the repository.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client that this hub library uses: # pyright: ignore[reportPrivateImportUsage]
)
from huggingface_hub.utils import validate_repo_id

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.models.hub import format_bytes
from mmrlhf.models.promises import CARD_FILE, HEAD_FILE
from mmrlhf.shards.index import Index
from mmrlhf.shards.origins import counted, read_origins
from mmrlhf.summaries.datasets import PublishSummary
from mmrlhf.text import markdown_table, one_line
from mmrlhf.training.model_card import CARD

log = logging.getLogger(__name__)

REUSABLE = False
# what is in a finished artefact; checked before it is published
PROMISES = ("metrics.json",)
RepoType = Literal["model", "dataset"]
_SET_FILES = ("index.parquet", "manifest.json")
_MOST_SHOWN = 12


@dataclass(frozen=True)
class Parcel:
    """What is sent: a word for it, the kind of repository, files by their name there, and a card where it has none."""

    what: str
    repo_type: RepoType
    files: Mapping[str, Path]
    card: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values()) + len((self.card or "").encode())

    def operations(self) -> list[CommitOperationAdd]:
        """The commit that adds them."""
        added = [CommitOperationAdd(name, str(file)) for name, file in self.files.items()]
        return [*added, CommitOperationAdd(CARD, self.card.encode())] if self.card is not None else added


def run(
    out: Path,
    *,
    folder: Path,
    repo: str,
    private: bool = True,
    confirm: bool = False,
    revision: str = "main",
    message: str | None = None,
    endpoint: str | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Say what would be published where, and with `confirm` publish it in one commit.

    Args:
        folder: a trained policy, a reward model, or a packed data set.
        repo: repository on the hub, owner/name; made if it is not there.
        private: whether a repository that is made can be seen by its owner alone.
        confirm: false says what would be done, and does nothing.
        revision: the branch that the commit goes to.
        message: of the commit; None: what is sent.
        endpoint: address of another hub; None: the usual one (or the environment variable HF_ENDPOINT).

    Raises:
        ConfigError: `repo` is no name of a repository.
        DataError: the folder is none of these.
        HubError: the hub cannot be reached or refuses.
    """
    check_settings({"repo": repo})
    parcel = pack_parcel(folder, progress=runtime.progress)
    where = f"{endpoint or constants.ENDPOINT}/{'datasets/' if parcel.repo_type == 'dataset' else ''}{repo}"
    _announce(parcel, where, private)
    summary = PublishSummary(
        what=parcel.what,
        repo=repo,
        repo_type=parcel.repo_type,
        private=private,
        files=len(parcel.operations()),
        bytes=parcel.num_bytes,
        sent=confirm,
    )
    if confirm:
        with _hub_errors(where):
            api = HfApi(endpoint=endpoint)
            api.create_repo(repo, repo_type=parcel.repo_type, private=private, exist_ok=True)
            done = api.create_commit(
                repo, parcel.operations(), commit_message=message or f"A {parcel.what}, made with mmrlhf",
                repo_type=parcel.repo_type, revision=revision,
            )  # fmt: skip
        summary = replace(summary, commit=str(done.oid), url=str(done.commit_url))
        log.info("published: %s", done.commit_url)
    else:
        log.info("nothing was sent; publish.confirm=true sends it")
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what is no name of a repository (ConfigError) before anything is trained for it."""
    repo = str(settings["repo"])
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise _no_name(repo) from error
    if repo.count("/") != 1:
        raise _no_name(repo)


def _no_name(repo: str) -> ConfigError:
    return ConfigError(
        "this is no name of a repository on the hub", where="publish.repo", given=repo, expected="OWNER/NAME"
    )


def pack_parcel(folder: Path, *, progress: bool = True) -> Parcel:
    """Find out what a folder holds and which of its files belong to that; raises DataError for anything else."""
    if (folder / "manifest.json").is_file():
        return _data_set(folder, progress)
    if not (folder / "config.json").is_file():
        raise DataError(
            "nothing that can be published",
            where=folder,
            given=", ".join(sorted(path.name for path in folder.glob("*"))[:_MOST_SHOWN]) or "an empty folder",
            expected="a model (config.json, *.safetensors) or a packed data set (manifest.json, index.parquet, *.tar)",
            fix="a stage's model is in its folder `model`: inputs.publish=stage:mmdpo/model",
        )
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in found}
    files = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.split("/"))}
    is_judge = (folder / CARD_FILE).is_file() and (folder / HEAD_FILE).is_file()
    return Parcel("reward model" if is_judge else "policy", "model", files)


def _data_set(folder: Path, progress: bool) -> Parcel:
    """The set itself: what else lies there (records of the run) names places of this machine."""
    index = Index.load(folder)
    files = {name: folder / name for name in (*_SET_FILES, *(shard.name for shard in index.shards))}
    outside = [name for name, path in files.items() if ".." in Path(name).parts or not path.is_file()]
    if outside:
        raise DataError(
            "this set refers to shards of other folders",
            where=folder,
            given=", ".join(outside[:_MOST_SHOWN]),
            fix="publish the sets that it was mixed from, each by itself",
        )
    return Parcel("packed data set", "dataset", files, card=data_card(index, progress=progress))


def data_card(index: Index, *, progress: bool = True) -> str:
    """README.md of a packed set: what is in it, under which licences, how to read it.

    Raises: DataError for a record that cannot be read: a damaged set is not published.
    """
    categories = Counter(str(name) for name in index.column("category")).most_common()
    origins = read_origins(index, progress=progress)
    responses, pairs = (int(index.column(f"num_{name}").sum()) for name in ("responses", "pairs"))
    table = markdown_table([("category", "queries"), *((name, f"{count:,}") for name, count in categories)])
    return f"""---
task_categories: [image-text-to-text]
tags: [mmrlhf, preference]
---

# Ranked preference data

{len(index):,} queries with {responses:,} responses and {pairs:,} pairs of different rank, as WebDataset shards with an
index.

Sources that the records name: {counted(origins.sources, len(index)) or "none"}. Licences: {origins.licence_names()}.

{table}
```python
from huggingface_hub import snapshot_download
from mmrlhf import load_shards

for group in load_shards(snapshot_download("OWNER/NAME", repo_type="dataset")):
    print(group.prompt, [(response.rank, response.text) for response in group.responses])
```
"""


def _announce(parcel: Parcel, where: str, private: bool) -> None:
    listed = sorted(parcel.files.items(), key=lambda item: -item[1].stat().st_size)
    for name, file in listed[:_MOST_SHOWN]:
        log.info("  %s  %s", format_bytes(file.stat().st_size).rjust(10), name)
    if len(listed) > _MOST_SHOWN:
        log.info("  and %d more", len(listed) - _MOST_SHOWN)
    seen = "private" if private else "public"
    log.info("a %s, %d files, %s", parcel.what, len(parcel.operations()), format_bytes(parcel.num_bytes))
    log.info("-> %s (%s, if it is made now)", where, seen)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # an upload that fails is a RuntimeError, an answer that is none a ValueError; what caused them says more
        cause = next((each for each in _causes(error) if isinstance(each, HTTPError)), error)
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        refused = status in (401, 403)
        raise HubError(
            "the hub does not let you write there" if refused else "the hub did not take it",
            where=where,
            given=one_line(cause, 300),
            fix="log in with a token that may write: `hf auth login`" if refused else "run the same command again",
        ) from error
