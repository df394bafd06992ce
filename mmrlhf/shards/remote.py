"""Shards that lie on http(s), s3 or gs: whole shards are fetched before or when they are read, into a shared cache.

A shard is downloaded to `SHA256.BYTES.part` under a file lock, in ranges, so that an attempt goes on where the one
before broke off; it gets its name only once its size and SHA-256 are those of the manifest. The cache is addressed by
content: the same shard under two addresses is kept once. When it is full, the shards go that were used longest ago:
every read is a use, and no reader keeps a shard open, so what goes is free at once. A shard that is being fetched
counts in full.

The folder is `$MMRLHF_SHARD_CACHE` (default `~/.cache/mmrlhf`), the size cap `$MMRLHF_SHARD_CACHE_GIB` (default 100).
Nothing here is reached unless an input is an address.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.files import LARGEST_FILE, expanded, publish_file, write_bytes
from mmrlhf.shards.manifest import INDEX_FILE, MANIFEST_FILE, Shard, check_index, parse_manifest

log = logging.getLogger(__name__)

T = TypeVar("T")
FOLDER_VARIABLE, SIZE_VARIABLE = "MMRLHF_SHARD_CACHE", "MMRLHF_SHARD_CACHE_GIB"
ATTEMPTS = 6
FIRST_PAUSE = 1.0
_ROOM_PAUSE = 0.5
_RANGE = 8 * 2**20
_WITHOUT_RANGES = 2**30  # a shard that is taken from a server that sends all of it, whatever is asked for
_EXTRAS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


class RemoteShards:
    """One folder of shards at an address, read through the cache.

    Args:
        url: address of the folder that holds `manifest.json`.

    Raises:
        ConfigError: an address that nothing installed can read, or a size cap that is no number.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._stores: dict[int, tuple[Any, str]] = {}
        self._store()
        self._cache = expanded(os.environ.get(FOLDER_VARIABLE, "~/.cache/mmrlhf"))
        self.max_bytes = _size_cap()
        self._shards: dict[str, Shard] = {}
        self.sizes: dict[str, int] = {}

    def fetch_index(self) -> Path:
        """Fetch manifest and index, the index only if it is another one than last time; returns their local folder.

        Raises:
            DataError: there is no manifest or no index, or one is damaged. HubError: the place cannot be reached.
        """
        name = hashlib.blake2b(self.url.encode(), digest_size=12).hexdigest()
        folder = self._cache / "sets" / name
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            manifest = self._attempt(MANIFEST_FILE, _whole)
            kept = folder / MANIFEST_FILE
            if not (folder / INDEX_FILE).exists() or not kept.exists() or kept.read_bytes() != manifest:
                kept.unlink(missing_ok=True)  # written last, so that it vouches for the index beside it
                index = self._attempt(INDEX_FILE, _whole)
                check_index(parse_manifest(manifest, self.url), index, f"{self.url}/{INDEX_FILE}")
                write_bytes(folder / INDEX_FILE, index)
                write_bytes(kept, manifest)
        return folder

    def add(self, shards: tuple[Shard, ...]) -> None:
        """Say which shards the manifest lists."""
        self._shards = {shard.name: shard for shard in shards}
        self.sizes = {shard.name: shard.bytes for shard in shards}
        total = sum(shard.bytes for shard in shards)
        if total > self.max_bytes:
            log.warning(
                "%s holds %.1f GiB, its cache %.1f GiB (%s): give data.mixing.shuffle_window half as many shards as "
                "fit, or every epoch fetches most of them again and again",
                self.url, total / 2**30, self.max_bytes / 2**30, SIZE_VARIABLE,
            )  # fmt: skip

    def open(self, name: str) -> int:
        """Open the local copy of a shard for reading, after fetching it where needed; it counts as used now.

        Raises:
            DataError: the bytes are not those of the manifest. HubError: they cannot be had.
        """
        shard = self._shards[name]
        path = self._cache / "shards" / f"{shard.sha256}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _use(path)
        except FileNotFoundError:
            with FileLock(path.with_suffix(".lock")):  # under which nobody removes it
                if not path.exists():
                    part = path.with_name(f"{shard.sha256}.{shard.bytes}.part")
                    self._make_room(shard, part)
                    self._download(shard, part, path)
                return _use(path)

    def fetch(self, name: str) -> None:
        """Bring a shard into the cache, if it is not there (raises like `open`)."""
        os.close(self.open(name))

    def _store(self) -> tuple[Any, str]:
        """The file system and the folder in it; a forked process opens its own, because connections do not fork."""
        if os.getpid() not in self._stores:
            self._stores = {os.getpid(): _file_system(self.url)}
        return self._stores[os.getpid()]

    def _download(self, shard: Shard, part: Path, path: Path) -> None:
        for again in (False, True):
            self._fill(shard, part)
            with part.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found == shard.sha256:
                publish_file(part, path)
                return
            part.unlink()
            log.warning("%s/%s arrived with other bytes%s", self.url, shard.name, "" if again else ", fetching it anew")
        raise DataError(
            "shard has other bytes than when it was written",
            where=f"{self.url}/{shard.name}", given=f"sha256 {found}", expected=shard.sha256,
            fix="upload the shard again, or pack it again",
        )  # fmt: skip

    def _fill(self, shard: Shard, part: Path) -> None:
        """Append ranges until the part is as long as the shard."""
        with part.open("ab") as stream:
            while (have := stream.tell()) < shard.bytes:
                end = min(have + _RANGE, shard.bytes)
                read = partial(_range, start=have, end=end, shard=shard)
                stream.write(self._attempt(shard.name, read))
                stream.flush()
        if part.stat().st_size != shard.bytes:
            part.unlink()  # of another shard of this name, or of a server that sent too much
            self._fill(shard, part)

    def _attempt(self, name: str, read: Callable[[Any, str], T]) -> T:
        """Read, trying again after growing pauses, whatever the store's library raises; the last error is shown."""
        for attempt in range(ATTEMPTS):
            try:
                store, root = self._store()
                return read(store, f"{root}/{name}")
            except FileNotFoundError as error:
                raise DataError("not found", where=f"{self.url}/{name}", fix="check the address") from error
            except Exception as error:
                if attempt == ATTEMPTS - 1:
                    raise HubError(
                        "a shard set cannot be read from where it lies",
                        where=f"{self.url}/{name}",
                        given=f"{type(error).__name__}: {error}",
                        fix="run the same command again: what has arrived is kept",
                    ) from error
                log.warning("%s/%s: %s; trying again", self.url, name, error)
                time.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _make_room(self, shard: Shard, part: Path) -> None:
        """Wait until the shard fits under the cap, removing what was used longest ago, and claim its bytes."""
        if shard.bytes > self.max_bytes:
            raise ConfigError(
                "the cache is smaller than one shard",
                where=SIZE_VARIABLE, given=f"{self.max_bytes} bytes", expected=f"at least {shard.bytes} bytes",
            )  # fmt: skip
        while True:
            with FileLock(self._cache / "room.lock"):
                kept = [item for item in _contents(part.parent) if item[2] != part]
                free = self.max_bytes - sum(size for _, size, _ in kept)
                for _, size, item in kept:
                    if free < shard.bytes and _remove(item):
                        free += size
                if free >= shard.bytes:
                    part.touch()
                    return
            time.sleep(_ROOM_PAUSE)  # all of the cache is being fetched into


def manifest_token(url: str) -> str:
    """Fingerprint what an address holds: its manifest's bytes."""
    folder = RemoteShards(url).fetch_index()
    return "manifest:" + hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def _use(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    now = time.time_ns()  # finer than what the kernel would write
    os.utime(descriptor, ns=(now, now))
    return descriptor


def _contents(folder: Path) -> list[tuple[int, int, Path]]:
    """What a cache holds, longest unused first: (time of use, bytes, file); an unfinished file has its bytes to be."""
    while True:
        try:
            return sorted(
                (item.stat().st_mtime_ns, int(claimed) if claimed.isdigit() else item.stat().st_size, item)
                for item, claimed in ((item, item.stem.partition(".")[2]) for item in folder.iterdir())
                if item.suffix in (".tar", ".part")
            )
        except FileNotFoundError:
            continue  # one of them got its name in between


def _remove(item: Path) -> bool:
    """Remove a file of the cache, unless it is being fetched."""
    lock = FileLock(item.with_name(item.name.partition(".")[0] + ".lock"))
    try:
        with lock.acquire(timeout=0):
            item.unlink(missing_ok=True)
            return True
    except Timeout:
        return False


def _whole(store: Any, path: str) -> bytes:
    return _read_web(store, path, LARGEST_FILE) if _is_web(store) else store.cat_file(path)


def _range(store: Any, path: str, *, start: int, end: int, shard: Shard) -> bytes:
    if _is_web(store):
        most = max(end - start, min(shard.bytes, _WITHOUT_RANGES))
        block = _read_web(store, path, most, headers={"Range": f"bytes={start}-{end - 1}"})
    else:
        block = store.cat_file(path, start=start, end=end)
    if len(block) == shard.bytes != end - start:
        block = block[start:end]  # a server that knows no ranges sends everything
    if not block or len(block) > end - start:
        raise OSError(f"asked for bytes {start} to {end}, got {len(block)}")
    return block


def _is_web(store: Any) -> bool:
    return "http" in store.protocol


def _read_web(store: Any, path: str, most: int, **request: Any) -> bytes:
    """What a web server answers, which may be anyone's: no more bytes than a file or a range can have (OSError)."""
    from fsspec.callbacks import Callback

    class AtMost(Callback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > most:
                raise OSError(f"the server sent more than {most} bytes")

    answer = io.BytesIO()
    store.get_file(path, answer, callback=AtMost(), **request)
    return answer.getvalue()


def _size_cap() -> int:
    given = os.environ.get(SIZE_VARIABLE, "100")
    try:
        return int(float(given) * 2**30)
    except (ValueError, OverflowError) as error:
        raise ConfigError("not a size", where=SIZE_VARIABLE, given=given, expected="GiB, e.g. 200") from error


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec  # only where something is remote

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise ConfigError(
            f"{protocol}:// needs a package that is not installed",
            where=url, given=str(error), fix=f"pip install {_EXTRAS.get(protocol, protocol)}",
        ) from error  # fmt: skip
    except ValueError as error:
        raise ConfigError(
            "nothing reads this address", where=url, given=str(error), expected="http, s3 or gs"
        ) from error
