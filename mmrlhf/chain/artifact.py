"""An artefact and what determines it, and the records of both: in its folder, or in one that is under work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmrlhf.chain.fingerprint import digest
from mmrlhf.chain.provenance import git_commit, versions
from mmrlhf.errors import DataError
from mmrlhf.files import hide_credentials

# in a folder under work; gone once it is finished
BEGUN_FILE = ".begun.json"


@dataclass(frozen=True)
class Recipe:
    """What determines an artefact: the stage, its fingerprint, and what that is made of.

    Args:
        settings: of the stage; inputs: fingerprints of the artefacts that it reads.
        sources: what the user's own inputs in the settings hold (`source_tokens`).
        version: of the stage; own_code: hashes of the user's modules (both in the fingerprint).
        package_code: hashes of our modules, which are not.
    """

    stage: str
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    version: int = 1
    own_code: Mapping[str, str] = field(default_factory=dict)
    package_code: Mapping[str, str] = field(default_factory=dict)

    def with_code(self) -> Recipe:
        """The same with our modules in its fingerprint: an artefact beside the one that other code has built."""
        return replace(self, fingerprint=digest(self.fingerprint, self.package_code))

    def record(self) -> dict[str, Any]:
        """What is written of it beside what it makes, without credentials."""
        return {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "settings": hide_credentials(self.settings),
            "inputs": self.inputs,
            "sources": hide_credentials(self.sources),
            "code": {"version": self.version, "own": self.own_code, "package": self.package_code},
            "versions": versions(),
            "git": git_commit(),
        }


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and what `artifact.json` says about it; `reused` if this run did not build it."""

    stage: str
    fingerprint: str
    folder: Path
    seconds: float
    summary: Mapping[str, Any]
    reused: bool
    package_code: Mapping[str, str] = field(default_factory=dict)


def read_artifact(record: Path) -> Artifact:
    """Read the record of a finished artefact; raises DataError where it is damaged."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        fingerprint, seconds, summary = str(content["fingerprint"]), float(content["seconds"]), content["summary"]
        code = dict(content.get("code", {}).get("package", {}))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError("an artefact's record is damaged", where=record, fix="delete its folder") from error
    return Artifact(record.parent.parent.name, fingerprint, record.parent, seconds, summary, True, code)


def begun_by(building: Path) -> dict[str, str]:
    """Hashes of our modules that an unfinished folder was filled with; none where it does not say."""
    try:
        return dict(json.loads((building / BEGUN_FILE).read_text(encoding="utf-8"))["code"]["package"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {}
