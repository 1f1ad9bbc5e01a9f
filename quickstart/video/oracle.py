"""Reads the attributes of the bundled world in motion back from the pixels of a clip, frame by frame.

It checks the judge and evaluates runs; nothing is ever trained or paired with it.
"""

from functools import cache

import numpy as np
from scipy.ndimage import uniform_filter

from quickstart.facts import FactOracle, facts_checklist
from quickstart.video.world import (
    ATTRIBUTES,
    BACKGROUND_RGB,
    FRAMES,
    HEADING_XY,
    NAMES,
    OBJECT_RGB,
    RADII,
    SIZE,
    STEP,
    right,
    scenes_of,
    silhouette,
)
from rewards.media import Media
from rewards.vision_reward import VisionReward

DIMENSIONS = {  # as in configs/checklists/quickstart_video.yaml, so that tables line up
    "alignment": ("shape", "colour", "direction", "speed", "background"),
    "quality": ("clear",),
    "preservation": ("same_colour", "same_shape"),
    "dynamic": ("moves", "keeps_moving"),
    "stability": ("smooth",),
}

CROP = 20  # pixels around the object that are compared with silhouettes
RADIUS_GRID = np.linspace(min(RADII) - 0.5, max(RADII) + 0.5, 5)
START, END = slice(0, 3), slice(-3, None)  # the frames that tell how a clip begins, and how it ends
LEAST_AREA = 15.0  # pixels of coverage below which there is no object
LEAST_WAY = 1.8  # pixels in all below which the object stands still; the shortest way has 3.5
SPEED_LIMIT = STEP.mean()  # pixels a frame: between slowly and quickly
SHAKE_LIMIT = 2.0  # pixels: mean second difference of the place; 0 on a steady way, 8 on one that shakes
FADE_LIMIT = 0.75  # opacity at the end by that at the start: about 1 or about .5


@cache
def _explanations() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return silhouettes of unit norm [N, CROP * CROP], their shapes [N], the opacity of a unit of each."""
    low = (SIZE - CROP) // 2
    shown = [(shape, radius) for shape in range(len(ATTRIBUTES["shape"])) for radius in RADIUS_GRID]
    masks = np.stack([silhouette(*pair)[low : low + CROP, low : low + CROP].ravel() for pair in shown])
    norms = np.linalg.norm(masks, axis=1)
    return masks / norms[:, None], np.array([shape for shape, _ in shown]), 1 / norms


def _coverage(frames: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each frame's colour [N] and how far it covers the pixels [N, H, W]: the least misfit.

    frames [N, H, W, 3] and the colour behind the object [N, 3] in float32.
    """
    difference = frames - ground[:, None, None]
    fits = []
    for rgb in OBJECT_RGB:
        paint = rgb - ground
        share = np.einsum("nhwc,nc->nhw", difference, paint) / (paint * paint).sum(1)[:, None, None]
        share = np.clip(share, 0, 1.2)
        misfit = ((difference - share[..., None] * paint[:, None, None]) ** 2).sum((1, 2, 3))
        fits.append((misfit, share))
    colour = np.argmin([misfit for misfit, _ in fits], axis=0)
    coverage = np.stack([share for _, share in fits])[colour, np.arange(len(frames))]
    return colour, np.where(uniform_filter(coverage, (0, 3, 3)) > 0.08, coverage, 0.0)


def _explain(coverage: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the likeness of a coverage [N, H, W] to each shape [N, 3], and its opacity [N].

    centre [N, 2]: its middle (row, column). The likeness is a cosine, the best over radii and shifts.
    """
    masks, shapes, unit = _explanations()
    padded = np.pad(coverage, ((0, 0), (CROP, CROP), (CROP, CROP)))
    window, item = np.arange(CROP) - CROP // 2 + CROP, np.arange(len(coverage))[:, None, None]
    likeness = np.zeros((len(coverage), len(masks)), np.float32)
    for shift in np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1)), axis=-1).reshape(-1, 2):
        rows, columns = ((np.rint(centre) + shift).astype(int)[:, axis, None] + window for axis in (0, 1))
        crops = padded[item, rows[:, :, None], columns[:, None, :]].reshape(len(coverage), -1)
        likeness = np.maximum(likeness, crops @ masks.T)
    best = np.stack([likeness[:, shapes == shape].max(1) for shape in range(shapes.max() + 1)], axis=1)
    return best, likeness.max(1) * unit[likeness.argmax(1)]


def _mean(frames: np.ndarray, part: slice) -> np.ndarray:
    return frames[:, part].mean(axis=1)


def _motion(place: np.ndarray) -> dict[str, np.ndarray]:
    """Return direction, speed, freeze and jitter [B] of an object at places (x, y) [B, T, 2].

    Two neighbouring frames are averaged where a shake must cancel.
    """
    pairs = (place[:, 1:] + place[:, :-1]) / 2
    way = (pairs[:, -1] - pairs[:, 0]) @ HEADING_XY.T
    direction = way.argmax(1)
    along = np.einsum("btk,bk->bt", pairs, HEADING_XY[direction])
    speed = (along[:, 3] - along[:, 0]) / 3
    last = (along[:, -1] - along[:, -3]) / 2
    shake = np.linalg.norm(np.diff(place, n=2, axis=1), axis=2).mean(1)
    still = way.max(1) < LEAST_WAY
    return {
        "direction": direction,
        "speed": (speed > SPEED_LIMIT).astype(int),
        "freeze": np.where(still, 2, (last < speed / 2).astype(int)),
        "jitter": (shake > SHAKE_LIMIT).astype(int),
    }


def read(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scenes int64 [B, 10] that clips uint8 [B, 9, 32, 32, 3] show, and whether with an object.

    Raises ValueError for clips of another size. Without an object its columns mean nothing.
    """
    if clips.ndim != 5 or clips.shape[1:] != (FRAMES, SIZE, SIZE, 3) or clips.dtype != np.uint8:
        wanted = f"uint8 [B, {FRAMES}, {SIZE}, {SIZE}, 3]"
        raise ValueError(f"clips are {clips.dtype} {list(clips.shape)}; the oracle reads {wanted}")
    count = len(clips)
    rim = np.concatenate(
        [clips[:, :, :2].reshape(count, -1, 3), clips[:, :, -2:].reshape(count, -1, 3)], axis=1
    )
    ground = np.median(rim, axis=1).astype(np.float32)
    frames = clips.reshape(-1, SIZE, SIZE, 3).astype(np.float32)
    colour, coverage = _coverage(frames, ground.repeat(FRAMES, axis=0))
    weight = coverage * (coverage > 0.5 * coverage.max((1, 2), keepdims=True))
    mass, pixels = np.maximum(weight.sum((1, 2)), 1e-6), np.arange(SIZE, dtype=np.float32)
    centre = np.stack(
        [(weight.sum(2) * pixels).sum(1) / mass, (weight.sum(1) * pixels).sum(1) / mass], axis=1
    )
    likeness, opacity = _explain(coverage, centre)
    likeness, opacity = likeness.reshape(count, FRAMES, -1), opacity.reshape(count, FRAMES)
    votes = np.eye(len(OBJECT_RGB))[colour.reshape(count, FRAMES)]
    (shape, last_shape), (colour, last_colour) = (
        (_mean(part, START).argmax(1), _mean(part, END).argmax(1)) for part in (likeness, votes)
    )
    area = coverage.sum((1, 2)).reshape(count, FRAMES)
    found = {
        "shape": shape,
        "colour": colour,
        "background": np.linalg.norm(ground[:, None] - BACKGROUND_RGB, axis=2).argmin(1),
        "fade": (_mean(opacity, END) < FADE_LIMIT * _mean(opacity, START)).astype(int),
        "recolour": (colour != last_colour).astype(int),
        "reshape": (shape != last_shape).astype(int),
        **_motion(centre.reshape(count, FRAMES, 2)[..., ::-1]),
    }
    return np.stack([found[name] for name in NAMES], axis=1), _mean(area, START) > LEAST_AREA


def facts(media: Media, prompt: str) -> dict[str, bool]:
    """Return what of a prompt is right in a clip; ValueError where either is not of this world.

    Without an object only the background can be right.
    """
    scenes, present = read(media.frames[None])
    true = right(scenes, scenes_of([prompt]))
    return {name: bool(value[0] and (present[0] or name == "background")) for name, value in true.items()}


class OracleReward(VisionReward):
    """The oracle as one more reward: a dimension's score is the share of its facts that are right."""

    def __init__(self):
        oracle = FactOracle(facts, "quickstart-video-oracle-1", "video", f"uniform:{FRAMES}")
        super().__init__(oracle, facts_checklist(DIMENSIONS))
