"""Pictures as services take them: data URLs, of a video its frames by our own sampler."""

from __future__ import annotations

import base64
import io

from PIL import Image

from mmrlhf.media.images import decode_image, is_upright_jpeg
from mmrlhf.tokens.processing import MediaSettings, decode_media
from mmrlhf.types import Media, PreferenceGroup

# of a picture that was made smaller: its text stays sharp
_JPEG = {"quality": 90, "subsampling": 0}


def urls_of(group: PreferenceGroup, item: Media, media: MediaSettings, longest_side: int | None) -> list[str]:
    """Data URLs of a picture (one) or of a video's frames."""
    where = f"key {group.key}, member {item.names[0]}, shard {group.shard or '(not packed)'}"
    if item.kind == "image":
        image = decode_image(item.data[0], alpha=media.alpha, where=where)  # type: ignore[arg-type]
        fits = longest_side is None or max(image.size) <= longest_side
        if fits and is_upright_jpeg(item.data[0], where=where):
            return [_url("jpeg", item.data[0])]
        return [_encoded(image, longest_side)]
    frames = decode_media(group, media, [item]).as_pictures().images
    return [_encoded(frame, longest_side) for frame in frames]


def _encoded(image: Image.Image, longest_side: int | None) -> str:
    """A picture without loss, or smaller and as JPEG."""
    buffer = io.BytesIO()
    if longest_side is None or max(image.size) <= longest_side:
        image.save(buffer, "PNG")
        return _url("png", buffer.getvalue())
    smaller = image.copy()
    smaller.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    smaller.save(buffer, "JPEG", **_JPEG)
    return _url("jpeg", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
