"""Pictures and clips as data URIs, small enough to lie in a page by the hundred."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

PIXELS = 320  # longer side of an embedded picture; larger ones are scaled down
CLIPS = {".mp4": "video/mp4", ".webm": "video/webm"}
_WHOLE = CLIPS | {".svg": "image/svg+xml"}


def data_uri(path: Path) -> str:
    """A clip, a drawing or a small PNG as it is, any other picture at most PIXELS wide or high as JPEG."""
    if path.suffix in _WHOLE:
        return _uri(_WHOLE[path.suffix], path.read_bytes())
    with Image.open(path) as image:
        if image.format == "PNG" and max(image.size) <= PIXELS // 2:
            return _uri("image/png", path.read_bytes())
        image.thumbnail((PIXELS, PIXELS))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=85)
    return _uri("image/jpeg", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
