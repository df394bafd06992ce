"""Features made on a cluster by Ray Data: it hands out parts of our own rows, so keys, order and batches are ours.

Each actor holds the encoder and makes parts as a single process does, into the same file. So both engines leave the
same bytes, and each goes on where the other stopped. All machines need the sets, and the folder that is filled, under
the same paths, and this package.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from mmrlhf.curation.encoders import Encoder, Precision
from mmrlhf.curation.encoding import FeatureSettings
from mmrlhf.curation.feature_parts import PartMaker
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import ConfigError, ModelError, UserError
from mmrlhf.terminal.progress import track
from mmrlhf.text import first_line

INSTALL, ADDRESS = 'pip install "mmrlhf[ray]"', "RAY_ADDRESS"
# shared memory of a cluster of this machine alone: nothing but numbers of parts goes through it
_SHARED_MEMORY = 100 << 20
# seconds that a cluster's head may take to answer
_PATIENCE = 20.0


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
    """Raise ConfigError where Ray is not installed, or its address cannot be one."""
    if find_spec("ray") is None or find_spec("ray.data") is None:
        raise ConfigError("the engine ray needs Ray Data, which is not installed", argument="engine", given="ray",
                          fix=f"{INSTALL}, or engine=local")  # fmt: skip
    _head_of(os.environ.get(ADDRESS, ""))


def make_features_on_cluster(
    maker: PartMaker, precision: Precision, *, accelerator: str = "auto", threads: int = 1, progress: bool = True
) -> None:
    """Make all parts that are missing, on the cluster of `RAY_ADDRESS`, or on one of this machine that ends with it.

    Args:
        precision: of the encoder's products.
        accelerator: what actors run on: "cpu", "gpu" or "cuda"; "auto": GPUs where the cluster has some.
        threads: of each actor, that read and decode media.

    Raises: as `PartMaker`, and what an actor raises; ConfigError where there is no cluster, or it lacks what is wanted.
    """
    missing = maker.missing()
    if not missing:
        return
    with cluster():
        import ray.data  # pyright: ignore[reportMissingImports]

        room = room_of([node["Resources"] for node in ray.nodes() if node["Alive"]], accelerator, threads)
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
    if address := os.environ.get(ADDRESS):
        _join(address)
    else:
        ray.init(address="local", include_dashboard=False, object_store_memory=_SHARED_MEMORY, log_to_driver=False,
                 logging_level=logging.WARNING)  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Enter a running cluster; raises ConfigError where there is none, soon: Ray itself would try for many minutes."""
    import ray  # pyright: ignore[reportMissingImports]

    head, failed = _head_of(address), ray.exceptions.RayError  # pyright: ignore[reportAttributeAccessIssue]
    try:
        if head is not None:
            socket.create_connection(head, timeout=_PATIENCE).close()
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, failed) as error:
        raise _no_cluster(address, first_line(error)) from error


def _head_of(address: str) -> tuple[str, int] | None:
    """Host and port that an address names, None where it is Ray's to find them; raises ConfigError for no address."""
    scheme, _, place = address.rpartition("://")
    if address in ("", "auto", "local") or scheme not in ("", "ray"):
        return None
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise _no_cluster(address, "no host and port")
    return host, port


def _no_cluster(address: str, why: str) -> ConfigError:
    return ConfigError(
        "there is no Ray cluster at this address",
        where=f"the environment variable {ADDRESS}", given=f"{address} ({why})",
        expected="HOST:PORT of a running head, as `ray start --head` says it, ray://HOST:PORT for clients, "
        "or auto for one of this machine",
        fix=f"unset {ADDRESS}, which makes a cluster of this machine alone, or engine=local",
    )  # fmt: skip


class Room(NamedTuple):
    """Processors and GPUs of an actor, and how many actors the cluster has room for."""

    cpus: int
    gpus: int
    actors: int


def room_of(machines: Sequence[Mapping[str, float]], accelerator: str, threads: int) -> Room:
    """How a cluster's machines are shared out: an actor for each GPU, or as many as processors allow.

    Actors on GPUs take processors of the machines that have GPUs alone, and no more than leave all GPUs in use: Ray
    waits for ever for an actor that fits on no machine.

    Args:
        machines: resources of each, as `ray.nodes()` says them.
        accelerator, threads: as `make_features_on_cluster`.

    Raises:
        ConfigError: GPUs are wanted and there are none.
    """
    with_gpus = [(int(each.get("CPU", 0)), int(each["GPU"])) for each in machines if each.get("GPU", 0) >= 1]
    if accelerator in ("gpu", "cuda") and not with_gpus:
        raise ConfigError("the cluster has no GPU", where="trainer.accelerator", given=accelerator,
                          fix="trainer.accelerator=cpu, or start Ray on machines that have some")  # fmt: skip
    if with_gpus and accelerator != "cpu":
        cpus = min(threads, *(cpus // gpus for cpus, gpus in with_gpus))
        return Room(cpus, 1, sum(gpus for _, gpus in with_gpus))
    processors = [int(each.get("CPU", 0)) for each in machines]
    cpus = max(1, min(threads, max(processors)))
    return Room(cpus, 0, sum(number // cpus for number in processors))
