"""Samples as files: pictures as PNG, clips as MP4 (H.264, which browsers and decord read)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SUFFIX = {"image": ".png", "video": ".mp4"}  # by modality
# Constant rate factor: 0 keeps all, 23 is x264's default; clips are read back and scored. With macroblock
# trees the same frames give other bytes from time to time.
X264 = {"crf": "10", "x264-params": "mbtree=0"}


def save_media(medium: Image.Image | np.ndarray, path: str | Path, frame_rate: float) -> None:
    """Write a picture as PNG, or a clip (uint8 [T, H, W, 3]) as MP4 of so many frames a second.

    The format does not depend on the name, so that a temporary one will do. Equal clips give equal bytes.
    """
    if isinstance(medium, Image.Image):
        medium.save(path, "PNG")
    else:
        write_clip(medium, path, frame_rate)


def write_clip(frames: np.ndarray, path: str | Path, frame_rate: float) -> None:
    """Write uint8 frames [T, H, W, 3] as H.264 in MP4; ValueError for odd sizes, which its colours forbid."""
    try:
        import av
    except ImportError:
        raise ValueError("writing clips needs PyAV: pip install av") from None
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: a clip of {width}x{height} pixels; MP4 needs even numbers")
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=round(frame_rate), options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1  # with more, the bytes depend on the machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
