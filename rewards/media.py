"""Images and videos in: reading, frame sampling, validation, content hash.

Videos are read with decord from the first frame to the last one needed, never by seeking (which leaks memory
there).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from rewards.tables import Embedded

PER_SECOND = "per_second"
MAX_SECONDS = 24  # VisionReward's limit: one frame a second, at most this many
_STILL = {"TIFF": "pages", "MPO": "pictures"}  # what several frames are in formats that do not move


@dataclass(frozen=True, eq=False)
class Media:
    """One image or clip in memory.

    image: RGB. frames: uint8 [T, H, W, 3] as sampled, at `timestamps` (seconds; empty when unknown).
    digest: hash of the pixels, independent of file name and format. notes: what was left out, if anything.
    """

    kind: Literal["image", "video"]
    source: str
    digest: str
    image: Image.Image | None = None
    frames: np.ndarray | None = None
    timestamps: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def pictures(self) -> list[Image.Image]:
        """The image, or the frames in order."""
        return [self.image] if self.kind == "image" else [Image.fromarray(frame) for frame in self.frames]


def load_media(
    source: str | Path | Embedded | Image.Image | np.ndarray | Media,
    frames: str = PER_SECOND,
    fps: float | None = None,
) -> Media:
    """An image or a clip from a path, a table's row, a PIL image, or a uint8 array [T, H, W, 3].

    frames: which frames of a clip to take. `per_second`, the rule of VisionReward: for every second s of
    `range(round(last timestamp) + 1)` the frame nearest to s, at most 24; `uniform:n`, n frames evenly
    spaced; or `first:n`, the first n frames, after which a file is not read on.
    fps: frame rate of an array; without it, an array's frames are taken to be sampled already.
    ValueError with one line for anything that cannot be read.
    """
    if isinstance(source, Media):
        return source
    if isinstance(source, Image.Image):
        return _image_media(_to_rgb(source, "image"), "image", ())
    if isinstance(source, np.ndarray):
        return _array_media(source, frames, fps)
    if isinstance(source, Embedded):
        found = _read_image(io.BytesIO(source.content()), str(source))
        if found is None:
            raise ValueError(f"{source}: not an image that can be read")
        return found
    if not isinstance(source, (str, Path)):
        raise ValueError(f"media: {type(source).__name__} given, needed a path, a PIL image or a uint8 array")
    path = Path(source)
    try:
        if path.is_dir():
            raise ValueError(f"{path}: a folder, needed a file")
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty")
        return _read_image(path, str(path)) or _read_video(path, frames)
    except PermissionError:
        raise ValueError(f"{path}: no permission to read it") from None


def sample_indices(timestamps: Sequence[float], frames: str) -> list[int]:
    """Indices of the frames that a rule takes from a clip whose frames start at `timestamps` (seconds)."""
    rule, count = read_rule(frames)
    if rule == "first":
        return list(range(min(count, len(timestamps))))
    if rule == "uniform":
        return sorted({int((step + 0.5) * len(timestamps) / count) for step in range(count)})
    starts = np.asarray(timestamps, dtype=np.float64)
    seconds = range(min(round(float(starts[-1])) + 1, MAX_SECONDS))
    return [int(np.abs(starts - second).argmin()) for second in seconds]


def read_rule(frames: str) -> tuple[str, int | None]:
    """The rule's name and its n, None for `per_second`; ValueError for a rule that is none."""
    if frames == PER_SECOND:
        return PER_SECOND, None
    match = re.fullmatch(r"(uniform|first):([1-9]\d*)", frames)
    if match is None:
        raise ValueError(
            f"frames: {frames!r} is unknown; allowed: {PER_SECOND}, uniform:n, first:n with n > 0"
        )
    return match[1], int(match[2])


def _read_image(file: Path | io.BytesIO, name: str) -> Media | None:
    """The image in a file, None when the file holds no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                count, still = getattr(image, "n_frames", 1), _STILL.get(image.format)
                image.load()
                rgb = _to_rgb(image, name)
    except Image.UnidentifiedImageError:
        return None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except (_Unusable, PermissionError, MemoryError):
        raise
    except Exception as error:  # PIL's readers fail in every way on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: damaged image ({reason})") from None
    if count == 1:
        return _image_media(rgb, name, ())
    seen = f"{count} {still}, only the first" if still else f"animated, only the first of {count} frames"
    return _image_media(rgb, name, (f"{name}: {seen} was seen",))


class _Unusable(ValueError):
    """A whole image that cannot be judged."""


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    """8-bit RGB, upright. PIL clips 16-bit grey to white, so that is scaled here."""
    if 0 in image.size:
        raise _Unusable(f"{where}: the image is empty ({image.width}x{image.height})")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise _Unusable(f"{where}: floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if image.mode == "I" and values.max() <= 255:
            image = Image.fromarray(values.astype(np.uint8))
        else:
            image = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB")


def _image_media(image: Image.Image, source: str, notes: tuple[str, ...]) -> Media:
    return Media("image", source, _digest(np.asarray(image)), image=image, notes=notes)


def _array_media(array: np.ndarray, frames: str, fps: float | None) -> Media:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"clip: array {array.dtype} {list(array.shape)}, needed uint8 [T, H, W, 3] with T > 0"
        )
    if fps is not None:
        timestamps = np.arange(len(array)) / fps
        return _video_media(
            array, timestamps, sample_indices(timestamps, frames), "clip", len(array) / fps, frames
        )
    if read_rule(frames)[0] != PER_SECOND:
        array = array[sample_indices(range(len(array)), frames)]
    elif len(array) > MAX_SECONDS:
        raise ValueError(
            f"clip: {len(array)} frames without a frame rate; pass load_media(frames, fps=...), "
            f"or at most {MAX_SECONDS} frames that are sampled already"
        )
    return Media("video", "clip", _digest(array), frames=array)


def _read_video(path: Path, frames: str) -> Media:
    decord = _decord()
    read_rule(frames)
    with path.open("rb") as file:
        if b"\0" not in file.read(4096):  # every video format has zeros there; decord would write to stderr
            raise ValueError(f"{path}: neither an image nor a video that can be read (it looks like text)")
    reader = None
    try:
        with _without_stderr():
            reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) == 0:
            raise ValueError(f"{path}: the video has no frames")
        spans = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))), dtype=np.float64)
        indices = sample_indices(spans[:, 0], frames)
        wanted, taken = set(indices), {}
        for index in range(max(indices) + 1):
            frame = reader.next()
            if index in wanted:
                taken[index] = _rgb(frame.asnumpy())
    except (RuntimeError, decord.DECORDError, StopIteration) as error:
        reason = "an unknown format, or damaged"  # decord's own text is about its source
        if "cannot find video stream" in str(error):
            reason = "it has no video stream"
        elif isinstance(error, StopIteration):
            reason = "it ends before its last frame"
        raise ValueError(f"{path}: neither an image nor a video that can be read ({reason})") from None
    finally:
        del reader  # closes the file
    duration = float(spans[-1, 1])
    return _video_media(taken, spans[:, 0], indices, str(path), duration, frames)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence the process's stderr: there decord reports a file that it cannot open, at any log level."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _rgb(frame: np.ndarray) -> np.ndarray:
    """A frame [H, W, 3]; decord counts the padding of narrow rows as further colours (48 pixels: four)."""
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    return frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _video_media(taken, timestamps, indices: list[int], source: str, duration: float, frames: str) -> Media:
    array = np.stack([taken[index] for index in indices])
    notes = ()
    if frames == PER_SECOND and duration > MAX_SECONDS:
        notes = (f"{source}: {duration:.1f} s long, only the first {MAX_SECONDS} s were seen",)
    seen = tuple(float(timestamps[index]) for index in indices)
    return Media("video", source, _digest(array), frames=array, timestamps=seen, notes=notes)


def _digest(pixels: np.ndarray) -> str:
    state = hashlib.blake2b(str(pixels.shape).encode(), digest_size=20)
    state.update(np.ascontiguousarray(pixels))
    return state.hexdigest()


def _decord():
    """The decord module; the package decord2 installs the same module where decord has no wheel."""
    try:
        import decord
    except ImportError:
        raise ValueError(
            "reading videos needs decord: pip install decord, or decord2 where there is no wheel"
        ) from None
    decord.logging.set_level(decord.logging.QUIET)
    return decord
