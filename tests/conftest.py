"""What every test gets: no network, no logged-in services, an artefact store of its own."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

# before any library reads them
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["WANDB_SILENT"] = "true"

PROJECT = Path(__file__).resolve().parents[1]

# models, shards and groups that the tests of several rooms share
FIXTURES = [
    "stand_ins.http_store",
    "stand_ins.served_model",
    "stand_ins.small_data",
    "stand_ins.small_encoder",
    "stand_ins.tiny_models",
]
pytest.register_assert_rewrite(*FIXTURES)

# `default`: the same examples on every machine, and no failure because a machine is slow. `fuzz` (`make fuzz`): others
# each time, many more of them, and what once failed is tried first
settings.register_profile("default", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile(
    "fuzz",
    derandomize=False,
    max_examples=300,
    deadline=None,
    print_blob=True,
    database=DirectoryBasedExampleDatabase(PROJECT / ".fuzz"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("MMRLHF_HYPOTHESIS", "default"))


# what is imported and collected stays: without these, the collector walks over all of it again and again
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Load what tests share; not where tests are only handed out to other processes, which would wait for it."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", default=None):
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


def pytest_collection_finish() -> None:
    """Collect garbage again, among what tests make."""
    gc.freeze()
    gc.enable()


def pytest_xdist_auto_num_workers() -> int:
    """One more process than cores, for tests that wait: for a server, a time-out, a process of their own."""
    return len(os.sched_getaffinity(0)) + 1


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
