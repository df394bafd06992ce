"""Features made on a cluster by Ray Data: it hands out parts of our own rows, so keys, order and batches are ours.

Each actor holds the encoder and makes parts as a single process does, into the same file. So both engines leave the
same bytes, and each goes on where the other stopped. All machines need the sets, and the folder that is filled, under
the same paths, and this package.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrlhf.curation.encoders import Encoder, Precision
from mmrlhf.curation.encoding import FeatureSettings
from mmrlhf.curation.feature_parts import PartMaker
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import ConfigError, ModelError, UserError
from mmrlhf.terminal.progress import track

INSTALL = 'pip install "mmrlhf[ray]"'
# shared memory of a cluster of this machine alone: nothing but numbers of parts goes through it
_SHARED_MEMORY = 100 << 20


@dataclass(frozen=True)
class Work:
    """What an actor needs to make parts: folders, the encoder (where it is, what records call it), and how.

    weights: what the encoder's have to sum to.
    """

    folder: Path
    queries: Path
    encoder: str
    name: str
    precision: Precision
    settings: FeatureSettings
    weights: str
    device: str
    threads: int


class PartActor:
    """Makes the parts that it is handed the numbers of; loads encoder and rows with the first.

    What is wrong with the input or the disk comes back in the column `error`: what Ray raises for an actor's error has
    lost the error itself.
    """

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        problem = b""
        try:
            maker, pool = self._maker
            for number in batch["item"].tolist():
                maker.make(number, pool)
        except (UserError, OSError) as error:
            problem = pickle.dumps(error)
        return {"item": batch["item"], "error": np.array([problem] * len(batch["item"]), dtype=object)}

    @cached_property
    def _maker(self) -> tuple[PartMaker, ThreadPoolExecutor]:
        work = self._work
        encoder = Encoder(work.encoder, work.device, work.precision, work.name)
        if encoder.fingerprint != work.weights:
            raise ModelError("machines of the cluster have different encoders under one name", where=work.encoder,
                             given=encoder.fingerprint, expected=work.weights)  # fmt: skip
        maker = PartMaker(work.folder, Queries(work.queries), encoder, work.settings)
        return maker, ThreadPoolExecutor(work.threads)


def check_ray() -> None:
    """Raise ConfigError where Ray is not installed."""
    if find_spec("ray") is None or find_spec("ray.data") is None:
        raise ConfigError("the engine ray needs Ray Data, which is not installed", argument="engine", given="ray",
                          fix=f"{INSTALL}, or engine=local")  # fmt: skip


def make_features_on_cluster(
    maker: PartMaker, precision: Precision, *, accelerator: str = "auto", threads: int = 1, progress: bool = True
) -> None:
    """Make all parts that are missing, on the cluster of `RAY_ADDRESS`, or on one of this machine that ends with it.

    Args:
        precision: of the encoder's products.
        accelerator: what actors run on: "cpu", "gpu" or "cuda"; "auto": GPUs where the cluster has some.
        threads: of each actor, that read and decode media.

    Raises: as `PartMaker`, and what an actor raises; ConfigError where the cluster lacks what is wanted.
    """
    missing = maker.missing()
    if not missing:
        return
    with cluster():
        import ray.data  # pyright: ignore[reportMissingImports]

        room = _room(accelerator, threads)
        name = maker.encoder.path
        encoder = str(Path(name).resolve()) if Path(name).exists() else name
        work = Work(maker.folder.resolve(), maker.queries.folder.resolve(), encoder, name, precision, maker.settings,
                    maker.encoder.fingerprint, "cuda" if room.gpus else "cpu", threads)  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        parts = ray.data.from_items(missing, override_num_blocks=len(missing))
        made = parts.map_batches(
            PartActor, fn_constructor_args=[work], batch_size=1, batch_format="numpy",
            num_cpus=room.cpus, num_gpus=room.gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(room.actors, len(missing)))),
        )  # fmt: skip
        for row in track(made.iter_rows(), "features (parts)", len(missing), enabled=progress):
            if row["error"]:
                raise pickle.loads(row["error"])


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster that this process is in, that of RAY_ADDRESS, or one of this machine for the time being."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    import ray  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(address="local", include_dashboard=False, object_store_memory=_SHARED_MEMORY, log_to_driver=False,
                 logging_level=logging.WARNING)  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


class _Room(NamedTuple):
    """Processors and GPUs of an actor, and how many actors the cluster has room for."""

    cpus: int
    gpus: int
    actors: int


def _room(accelerator: str, threads: int) -> _Room:
    import ray  # pyright: ignore[reportMissingImports]

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(threads, int(max(each.get("CPU", 0) for each in machines))))
    gpus = int(sum(each.get("GPU", 0) for each in machines))
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ConfigError("the cluster has no GPU", where="trainer.accelerator", given=accelerator,
                          fix="trainer.accelerator=cpu, or start Ray on machines that have some")  # fmt: skip
    if gpus and accelerator != "cpu":
        return _Room(cpus, 1, gpus)
    return _Room(cpus, 0, int(sum(each.get("CPU", 0) // cpus for each in machines)))
