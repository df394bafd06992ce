"""What pyproject.toml asks for and what constraints.txt pins fit together, with every extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
WANTED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = WANTED["optional-dependencies"]


def _pins() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.+]+)", line) for line in lines if not line.startswith("#")]
    assert all(found), "one exact version a line"
    return {canonicalize_name(each[1]): each[2] for each in found if each}


@pytest.mark.parametrize("asking", [WANTED["dependencies"], *EXTRAS.values()], ids=["package", *EXTRAS])
def test_all_that_is_asked_for_is_pinned_within_its_range(asking: list[str]) -> None:
    pins = _pins()
    for each in map(Requirement, asking):
        if canonicalize_name(each.name) != "mmrlhf":
            assert each.specifier.contains(pins[canonicalize_name(each.name)]), each


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_extra_installs_at_the_pinned_versions(tmp_path: Path) -> None:
    """As pip says that has nothing installed; a pin that another forbids makes the README's command fail."""
    reach = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), "six==1.17.0"]
    if subprocess.run(reach, capture_output=True).returncode:
        pytest.skip("needs a package index")
    words = ["install", "--dry-run", "--quiet", "--ignore-installed", "-c", "constraints.txt"]
    command = [sys.executable, "-m", "pip", *words, f".[{','.join(EXTRAS)}]"]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
