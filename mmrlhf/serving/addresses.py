"""Pictures and clips from http(s) addresses, of hosts on a list only, and never from inside the own network.

A request may name any address; what is reached is decided here. The host must be on the list. Its name is resolved
once, and the connection goes to an address of that answer which was looked at, so that a name cannot change its mind
between the check and the connection. Private, loopback, link-local and other special addresses are not reached, unless
the settings say so. Redirects are not followed, proxies of the environment are not used, nothing is decompressed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx
from typing_extensions import override

from mmrlhf.errors import ConfigError
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.refusals import Refusal

_PORTS = {"http": 80, "https": 443}
# IPv6 addresses that stand for an IPv4 address behind a translator
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
# the private networks of IPv6 before fd00::/8, which Python takes for global
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host, as the system says them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(address: Address) -> bool:
    """Whether an IP address is one of the open internet, also the IPv4 address that an IPv6 address stands for."""
    return all(
        each.is_global and not each.is_multicast and not each.is_reserved and each not in _SITE_LOCAL
        for each in _meant(address)
    )


def _meant(address: Address) -> Iterable[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _TRANSLATED:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    return [address, *(each for each in inner if each is not None)]


class _NotPublic(Exception):
    """A name that leads to an address which is not to be reached."""


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were looked at, and to no other."""

    def __init__(self, resolve: Resolve, private: bool) -> None:
        self._resolve, self._private = resolve, private
        self._plain: Any = httpcore.AnyIOBackend()

    @override
    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        found = [ipaddress.ip_address(text.partition("%")[0]) for text in await self._resolve(host, port)]
        wrong = [address for address in found if not self._private and not is_public(address)]
        if wrong or not found:
            raise _NotPublic(str(wrong[0]) if wrong else "no address")
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in found:
            try:
                return await self._plain.connect_tcp(str(address), port, *args, **kwargs)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    @override
    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


@dataclass(frozen=True)
class Allowed:
    """Whom a request may have pictures and clips fetched from.

    Args:
        hosts: names, such as `images.example.com`, `*.example.com` (whatever ends so), or either with `:PORT`; none: no
            address at all.
        private: also where a name leads to a private or loopback address; for a store of pictures in the own network.

    Raises:
        ConfigError: an entry that is no host.
    """

    hosts: Sequence[str] = ()
    private: bool = False

    def __post_init__(self) -> None:
        for entry in self.hosts:
            name = str(entry).removeprefix("*.")
            try:
                url = httpx.URL(f"http://{name}")
                plain = re.fullmatch(r"[^\s%/*]+", url.host) is not None
                fine = plain and url.raw_path == b"/" and not url.userinfo
            except httpx.InvalidURL:
                fine = False
            if not fine:
                raise ConfigError(
                    "this is no host",
                    argument="hosts",
                    given=entry,
                    expected="images.example.com, *.example.com, or either with :PORT",
                )

    def allows(self, url: httpx.URL) -> bool:
        """Whether an address is on the list; a port that is not the scheme's own has to be named."""
        usual = url.port in (None, _PORTS[url.scheme])
        return any(self._matches(str(entry).lower(), url, usual) for entry in self.hosts)

    def _matches(self, entry: str, url: httpx.URL, usual: bool) -> bool:
        listed = httpx.URL(f"//{entry.removeprefix('*.')}")  # without a scheme, whose own port would not be kept
        if not usual and listed.port != url.port:
            return False
        if usual and listed.port not in (None, _PORTS[url.scheme]):
            return False
        return url.host.endswith(f".{listed.host}") if entry.startswith("*.") else url.host == listed.host


class Addresses:
    """Fetches from the hosts that are allowed, under a limit of size and time.

    Args:
        allowed: whom.
        limits: how large, and how long.
        resolve: host and port -> IP addresses.
    """

    def __init__(self, allowed: Allowed, limits: Limits, resolve: Resolve = resolve) -> None:
        self._allowed, self._limits = allowed, limits
        network = _CheckedNetwork(resolve, allowed.private)
        self._pool = httpcore.AsyncConnectionPool(network_backend=network, max_connections=64, keepalive_expiry=5.0)

    async def close(self) -> None:
        """Close what is still open."""
        await self._pool.aclose()

    async def fetch(self, address: str, field: str) -> bytes:
        """The bytes at an address.

        Raises:
            Refusal: not allowed, too large, too slow, or not answered with the thing itself; names the field.
        """
        url = self._checked(address, field)
        try:
            async with asyncio.timeout(self._limits.fetch_timeout):
                return await self._get(url, field)
        except TimeoutError:
            seconds = self._limits.fetch_timeout
            raise Refusal(504, "address_timeout", f"the address did not answer within {seconds:g} s "
                          "(limits.fetch_timeout)", field=field) from None  # fmt: skip
        except _NotPublic as error:
            raise _forbidden(
                f"the name leads to {error}, which is not an address of the open internet", field
            ) from None
        except (
            httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError,
            UnicodeError,  # a name that no name can be
        ) as error:  # fmt: skip
            problem = f"the address could not be read ({type(error).__name__})"
            raise Refusal(422, "address_failed", problem, field=field) from error

    def _checked(self, address: str, field: str) -> httpx.URL:
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, ValueError):
            raise Refusal(422, "address_malformed", "this is no address", field=field) from None
        if url.scheme not in _PORTS:
            raise _forbidden(f"addresses of the kind {url.scheme or 'without a scheme'!r} are not read; "
                             "expected data:, http: or https:", field)  # fmt: skip
        if url.userinfo:
            raise _forbidden("an address with a password in it is not read", field)
        if not self._allowed.allows(url):
            raise _forbidden(
                f"the host {url.netloc.decode()!r} is not on the list of this server (allowed.hosts)", field
            )
        return url

    async def _get(self, url: httpx.URL, field: str) -> bytes:
        headers: dict[str | bytes, str | bytes] = {
            "Host": url.netloc.decode(),
            "Accept": "image/*, video/*",
            "Accept-Encoding": "identity",
        }
        seconds = self._limits.fetch_timeout
        timeouts = {"connect": seconds, "read": seconds, "write": seconds, "pool": seconds}
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port or _PORTS[url.scheme], target=url.raw_path
        )
        async with self._pool.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as response:
            if response.status != httpx.codes.OK:
                says = (
                    "a redirect, which is not followed" if 300 <= response.status < 400 else f"HTTP {response.status}"
                )
                raise Refusal(422, "address_failed", f"the address answers with {says}", field=field)
            if _header(response, b"content-encoding") not in (b"", b"identity"):
                raise Refusal(422, "address_failed", "the address answers with something compressed", field=field)
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._limits.max_medium:
                    raise too_large(self._limits, field)
            return bytes(body)


def too_large(limits: Limits, field: str) -> Refusal:
    """The refusal of a picture or clip that is too large."""
    problem = f"larger than {limits.max_media_mib:g} MiB (limits.max_media_mib)"
    return Refusal(413, "media_too_large", problem, field=field)


def _forbidden(problem: str, field: str) -> Refusal:
    return Refusal(403, "address_not_allowed", problem, field=field)


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value.strip().lower() for key, value in response.headers if key.lower() == name), b"")
