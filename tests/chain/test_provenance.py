"""Which commit the code is at: only that of a repository which tracks it."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from mmrlhf.chain.provenance import git_commit, versions


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one committed file, code.py."""
    _git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    _git(tmp_path, "add", "code.py")
    _git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_a_checkout_is_at_its_commit_until_it_is_edited(repository: Path) -> None:
    commit = _git(repository, "rev-parse", "HEAD")
    assert git_commit(repository / "code.py") == {"commit": commit, "edited": False}
    (repository / "code.py").write_text("a = 2\n")
    assert git_commit(repository / "code.py") == {"commit": commit, "edited": True}


def test_an_environment_inside_somebodys_repository_is_not_at_their_commit(repository: Path) -> None:
    installed = repository / ".venv" / "mmrlhf" / "code.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("a = 1\n")
    assert git_commit(installed)["commit"] is None


def test_a_package_from_a_git_address_knows_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "mmrlhf-9.dist-info"
    note.mkdir()
    (note / "METADATA").write_text("Metadata-Version: 2.1\nName: mmrlhf\nVersion: 9\n")
    (note / "direct_url.json").write_text('{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metadata.version("mmrlhf") == "9" == versions()["mmrlhf"]
    assert git_commit(tmp_path / "code.py") == {"commit": "abc", "edited": None}
