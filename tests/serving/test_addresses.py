"""What is fetched: from hosts on the list, from public addresses, whole, in time; and nothing else."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from mmrlhf.errors import ConfigError
from mmrlhf.serving.addresses import Addresses, Allowed, is_public, resolve
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.refusals import Refusal

LIMITS = Limits(max_media_mib=0.01, fetch_timeout=0.4)


class _Handler(BaseHTTPRequestHandler):
    """Answers as its path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        self.server.asked.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        status, size, headers = 200, 100, {}
        match self.path.split("?")[0]:
            case "/missing":
                status = 404
            case "/moved":
                status, headers = 302, {"Location": "/picture"}
            case "/large":
                size = 20_000
            case "/packed":
                headers = {"Content-Encoding": "gzip"}
            case "/slow":
                time.sleep(0.8)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size if self.path != "/cut" else 999))
        self.end_headers()
        try:
            self.wfile.write(b"p" * size)
        except OSError:
            pass
        self.close_connection = self.path == "/cut"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def pictures() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def loopback(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def fetch(address: str, allowed: Allowed, resolve=loopback, limits: Limits = LIMITS) -> bytes:
    async def run() -> bytes:
        addresses = Addresses(allowed, limits, resolve)
        try:
            return await addresses.fetch(address, "place")
        finally:
            await addresses.close()

    return asyncio.run(run())


def refused(address: str, allowed: Allowed, resolve=loopback) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        fetch(address, allowed, resolve)
    assert refusal.value.field == "place" and refusal.value.sentence.startswith("place: ")
    return refusal.value


def test_a_picture_is_fetched_by_the_name_that_was_given(pictures: ThreadingHTTPServer) -> None:
    port = pictures.server_port
    allowed = Allowed([f"pictures.example:{port}"], private=True)
    assert fetch(f"http://pictures.example:{port}/picture?size=2", allowed) == b"p" * 100
    assert pictures.asked[-1] == ("/picture?size=2", f"pictures.example:{port}")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("missing", 422, "HTTP 404"),
        ("moved", 422, "redirect, which is not followed"),
        ("large", 413, "larger than 0.01 MiB"),
        ("packed", 422, "compressed"),
        ("slow", 504, "within 0.4 s"),
        ("cut", 422, "could not be read"),
    ],
)
def test_what_is_not_the_picture_itself_is_refused(
    pictures: ThreadingHTTPServer, path: str, status: int, said: str
) -> None:
    host = f"pictures.example:{pictures.server_port}"
    before = len(pictures.asked)  # type: ignore[attr-defined]
    refusal = refused(f"http://{host}/{path}", Allowed([host], private=True))
    assert refusal.status == status and said in refusal.sentence
    assert len(pictures.asked) == before + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fd00::1", "fe80::1%eth0", "::ffff:10.0.0.1",
     "64:ff9b::7f00:1", "2002:7f00:1::", "100.64.0.1", "224.0.0.1", "::", "192.168.0.1", "fec0::1"],
)  # fmt: skip
def test_a_name_that_leads_inside_is_not_followed(pictures: ThreadingHTTPServer, address: str) -> None:
    """Neither where it is the only address, nor beside a public one."""
    host = f"pictures.example:{pictures.server_port}"
    before = len(pictures.asked)  # type: ignore[attr-defined]
    for found in ([address], ["93.184.216.34", address]):

        async def resolve(host: str, port: int, found: Sequence[str] = found) -> Sequence[str]:
            return found

        refusal = refused(f"http://{host}/picture", Allowed([host]), resolve)
        assert refusal.status == 403 and "not an address of the open internet" in refusal.sentence
    assert len(pictures.asked) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_name_is_asked_for_once_and_that_answer_is_used(pictures: ThreadingHTTPServer) -> None:
    """A name that says another address the second time is never asked a second time."""
    asked = []

    async def turning(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    host = f"pictures.example:{pictures.server_port}"
    assert fetch(f"http://{host}/picture", Allowed([host], private=True), turning)
    assert asked == ["pictures.example"]


def test_a_name_that_no_name_can_be_is_no_crash() -> None:
    """A part of a host's name has 63 signs at most; the system is not asked for another."""
    refusal = refused(f"http://{'a' * 64}.pictures.example/a", Allowed(["*.pictures.example"]), resolve)
    assert refusal.status == 422 and "could not be read" in refusal.sentence


def test_a_name_that_does_not_exist_is_no_crash() -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    assert refused("http://pictures.example/a", Allowed(["pictures.example"]), nowhere).status == 422


@pytest.mark.parametrize(
    ("entry", "address", "fine"),
    [
        ("a.example", "http://a.example/x", True),
        ("a.example", "https://a.example/x", True),
        ("a.example", "http://A.Example/x", True),
        ("A.example", "http://a.example/x", True),
        ("a.example", "http://b.a.example/x", False),
        ("a.example", "http://a.example.evil.example/x", False),
        ("a.example", "http://a.example:8080/x", False),
        ("a.example:8080", "http://a.example:8080/x", True),
        ("a.example:8080", "http://a.example/x", False),
        ("*.example", "http://b.a.example/x", True),
        ("*.example", "http://example/x", False),
        ("*.example", "http://badexample/x", False),
        ("*.example:81", "http://a.example:81/x", True),
        ("a.example", "https://a.example:443/x", True),
        ("a.example", "http://a.example:443/x", False),
        ("a.example:80", "http://a.example/x", True),
        ("a.example:80", "https://a.example/x", False),
        ("*.example:80", "https://a.example/x", False),
    ],
)
def test_the_list_says_which_hosts(entry: str, address: str, fine: bool) -> None:
    assert Allowed([entry]).allows(httpx.URL(address)) == fine


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "/etc/passwd", "ftp://a.example/x", "gopher://a.example", "http://user:word@a.example/x",
     "http://a.example\\@b.example/", "javascript:1", "", "http://", "b.example", "http://b.example/a.example"],
)  # fmt: skip
def test_other_addresses_are_refused_before_a_name_is_asked_for(address: str) -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        raise AssertionError

    assert refused(address, Allowed(["a.example"]), never).status in (403, 422)


@pytest.mark.parametrize("entry", ["http://a.example", "a.example/x", "", "*", "a b", "user@a.example", "a.*.example"])
def test_an_entry_that_is_no_host_is_a_mistake(entry: str) -> None:
    with pytest.raises(ConfigError, match="no host"):
        Allowed([entry])
