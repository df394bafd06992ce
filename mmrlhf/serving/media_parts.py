"""Pictures and clips of a request: bytes from a data address or a fetched one, looked at before the model sees them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Literal, TypeVar

from mmrlhf.errors import DataError
from mmrlhf.media.images import image_size
from mmrlhf.media.video import probe_video
from mmrlhf.serving.addresses import Addresses, too_large
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.refusals import Refusal, unusable
from mmrlhf.types import Media

T = TypeVar("T")
Kind = Literal["image", "video"]
_DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)(?P<parameters>(;[\w.+=-]+)*),", re.ASCII)


class MediaReader:
    """Makes a group's media of addresses.

    Args:
        addresses: fetches what lies elsewhere.
        limits: how large a medium may be.
        executor: threads in which media are looked at.
    """

    def __init__(self, addresses: Addresses, limits: Limits, executor: Executor) -> None:
        self._addresses, self._limits, self._executor = addresses, limits, executor

    async def read(self, address: str, kind: Kind, field: str) -> Media:
        """Read one medium, whose name is its field.

        Raises:
            Refusal: an address that is not allowed or not answered, or a file that is too large or cannot be used.
        """
        if address[:5].lower() == "data:":
            data = await self._in_thread(decode_data_address, address, kind, field, self._limits)
        else:
            data = await self._addresses.fetch(address, field)
        await self._in_thread(check_medium, data, kind, field, self._limits)
        return Media(kind, (field,), (data,))

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


def decode_data_address(address: str, kind: Kind, field: str, limits: Limits) -> bytes:
    """The bytes of `data:image/png;base64,...`; raises Refusal for anything else."""
    head = _DATA.match(address)
    if head is None or not head["parameters"].endswith(";base64"):
        expected = f"expected data:{kind}/...;base64,..."
        raise Refusal(422, "data_malformed", f"not a base64 data address ({expected})", field=field)
    if not head["type"].lower().startswith(f"{kind}/"):
        raise Refusal(422, "data_malformed", f"of the type {head['type']}, expected {kind}/...", field=field)
    encoded = address[head.end() :]
    if len(encoded) * 3 // 4 > limits.max_medium + 2:
        raise too_large(limits, field)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "data_malformed", f"not base64 ({error})", field=field) from None


def check_medium(data: bytes, kind: Kind, field: str, limits: Limits) -> None:
    """Look at a picture's header, or scan a clip; raises Refusal where it cannot be used or has too many pixels."""
    try:
        width, height = image_size(data, where=field) if kind == "image" else probe_video(data, field)[2:]
    except DataError as error:
        raise unusable(error, field, code="media_unusable") from error
    if width * height > limits.max_pixels:
        problem = f"{width} x {height} pixels; the limit is {limits.max_pixels} (limits.max_pixels)"
        raise Refusal(413, "media_too_large", problem, field=field)
