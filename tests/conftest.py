"""What every test gets: no network, no logged-in services, an artefact store of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# before any library reads them
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["WANDB_SILENT"] = "true"

# models, shards and groups that the tests of several rooms share
pytest_plugins = ["stand_ins.http_store", "stand_ins.small_data", "stand_ins.tiny_models"]

# a loaded machine is no defect: no test may fail on time
settings.register_profile("mmrlhf", deadline=None)
settings.load_profile("mmrlhf")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep artefacts of a test out of the project's own store."""
    folder = tmp_path / "artifacts"
    monkeypatch.setenv("MMRLHF_ARTIFACTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real samples that are not part of the repository: a folder `shared/data` beside the checkout."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the sample data in {folder}")
    return folder
