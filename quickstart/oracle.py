"""Reads the attributes of the bundled world back from pixels, by explaining a picture as the renderer would.

It checks the judge and evaluates runs; nothing is ever trained or paired with it.
"""

from functools import cache

import numpy as np
from scipy.ndimage import maximum_filter, uniform_filter

from quickstart.facts import FactOracle, facts_checklist
from quickstart.world import (
    ATTRIBUTES,
    BACKGROUND_RGB,
    BLUR_OPACITY,
    CENTRE_XY,
    OBJECT_RGB,
    RADII,
    SIZE,
    SPECK_COUNT,
    SPECK_RGB,
    SPECK_WIDTH,
    right,
    scenes_of,
    silhouette,
)
from rewards.media import Media
from rewards.vision_reward import VisionReward

DIMENSIONS = {  # as in configs/checklists/quickstart.yaml, so that tables line up
    "alignment": ("shape", "colour"),
    "composition": ("place", "size"),
    "setting": ("background",),
    "quality": ("clear", "clean"),
}

CROP = 44  # pixels around the object that are compared with silhouettes
RADIUS_GRID = np.linspace(RADII.min() - 1, RADII.max() + 1, 9)
SIGMA_GRID = np.array([0.6, 1.1, 1.6, 2.1, 2.7, 3.1])
SIZE_LIMIT = (RADII[0].max() + RADII[1].min()) / 2  # pixels: between small and large
OPACITY_LIMITS = tuple(np.convolve(BLUR_OPACITY, (0.5, 0.5), "valid")[::-1])  # halfway between levels
SPECK_LIMITS = (1, (SPECK_COUNT[1][1] + SPECK_COUNT[2][0]) / 2)  # specks: between the levels' counts
LEAST_AREA = 25.0  # pixels of coverage below which there is no object


@cache
def _explanations() -> tuple[np.ndarray, np.ndarray]:
    """Return silhouettes of unit norm [T, CROP * CROP] and what they show [T, 4].

    The columns are shape, radius, sigma, and the opacity that a unit's worth of the silhouette stands for.
    """
    shapes = range(len(ATTRIBUTES["shape"]))
    shown = np.array([(s, r, b) for s in shapes for r in RADIUS_GRID for b in SIGMA_GRID])
    low = (SIZE - CROP) // 2
    drawn = [silhouette(int(s), r, b)[low : low + CROP, low : low + CROP].ravel() for s, r, b in shown]
    masks = np.stack(drawn)
    return masks / np.linalg.norm(masks, axis=1, keepdims=True), np.c_[
        shown, 1 / np.linalg.norm(masks, axis=1)
    ]


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    return np.linalg.norm(colours[..., None, :] - palette, axis=-1).argmin(-1)


def _unmix(
    difference: np.ndarray, paint: np.ndarray, dirt: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coverage by paint, coverage by dirt and the squared residual, each [B, H, W].

    The difference to the background [B, H, W, 3] is explained by the non-negative shares of two colours.
    """
    pp, dd, pd = (paint * paint).sum(1), (dirt * dirt).sum(1), (paint * dirt).sum(1)
    dp = np.einsum("bhwc,bc->bhw", difference, paint)
    ddirt = np.einsum("bhwc,bc->bhw", difference, dirt)
    pp, dd, pd = pp[:, None, None], dd[:, None, None], pd[:, None, None]
    determinant = pp * dd - pd * pd
    a, s = (dd * dp - pd * ddirt) / determinant, (pp * ddirt - pd * dp) / determinant
    a, s = np.where(s < 0, dp / pp, a), np.where(a < 0, ddirt / dd, s)
    a, s = np.clip(a, 0, 1.2), np.clip(s, 0, 1.2)
    energy = (difference * difference).sum(-1)
    return a, s, energy - 2 * (a * dp + s * ddirt) + a * a * pp + s * s * dd + 2 * a * s * pd


def _crops(coverage: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return [B, CROP, CROP] of coverage [B, H, W] around centres [B, 2] (row, column), zero outside."""
    padded = np.pad(coverage, ((0, 0), (CROP, CROP), (CROP, CROP)))
    window = np.arange(CROP) - CROP // 2 + CROP
    rows, columns = (centre[:, axis, None] + window for axis in (0, 1))
    return padded[np.arange(len(coverage))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _explain(coverage: np.ndarray, centroid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shape, radius, opacity [B, 3] of the silhouette most like the coverage, its centre [B, 2]."""
    masks, shown = _explanations()
    best, found, centre = np.full(len(coverage), -1.0), np.zeros((len(coverage), 3)), centroid.copy()
    nearest = np.rint(centroid).astype(int)
    for shift in np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1)), axis=-1).reshape(-1, 2):
        crops = _crops(coverage, nearest + shift).reshape(len(coverage), -1)
        likeness = crops @ masks.T  # the best one also has the least squared error
        index, value = likeness.argmax(1), likeness.max(1)
        better = value > best
        shape, radius, _, unit = shown[index].T
        found[better] = np.stack([shape, radius, value * unit], axis=1)[better]
        best[better] = value[better]
        centre[better] = (nearest + shift)[better]
    return found, centre


def _read(pictures: np.ndarray) -> np.ndarray:
    count = len(pictures)
    frame = np.concatenate(
        [pictures[:, :4].reshape(count, -1, 3), pictures[:, -4:].reshape(count, -1, 3)], axis=1
    )
    sides = np.concatenate([pictures[:, :, :4], pictures[:, :, -4:]], axis=2).reshape(count, -1, 3)
    ground = np.median(np.concatenate([frame, sides], axis=1), axis=1).astype(np.float32)
    background = _nearest(ground, BACKGROUND_RGB)
    difference = pictures.astype(np.float32) - ground[:, None, None]
    dirt = SPECK_RGB[background] - ground

    thin = difference[:, ::2, ::2]  # a quarter of the pixels tells the colour
    misfit = [_unmix(thin, rgb - ground, dirt)[2].sum((1, 2)) for rgb in OBJECT_RGB]
    colour = np.argmin(misfit, axis=0)
    coverage, specks, _ = _unmix(difference, OBJECT_RGB[colour] - ground, dirt)
    coverage = np.where(uniform_filter(coverage, (0, 5, 5)) > 0.04, coverage, 0.0)
    area = coverage.sum((1, 2))
    present = area > LEAST_AREA

    pixels = np.arange(SIZE, dtype=np.float32)
    weight = coverage * (coverage > 0.15)
    mass = np.maximum(weight.sum((1, 2)), 1e-6)
    centroid = np.stack(
        [(weight.sum(2) * pixels).sum(1) / mass, (weight.sum(1) * pixels).sum(1) / mass], axis=1
    )
    explained, centre = _explain(coverage, centroid)
    shape, radius, opacity = explained.T

    level = uniform_filter(specks, (0, SPECK_WIDTH, SPECK_WIDTH), mode="constant")
    level = np.where(uniform_filter(coverage, (0, 3, 3)) > 0.2, 0.0, level)
    peaks = (level == maximum_filter(level, (0, 5, 5))) & (level > 0.5)
    return np.stack(
        [
            shape.astype(int),
            colour,
            (radius > SIZE_LIMIT).astype(int),
            _nearest(centre[:, ::-1], CENTRE_XY),
            background,
            2 - np.digitize(opacity, OPACITY_LIMITS),
            np.digitize(peaks.sum((1, 2)), SPECK_LIMITS),
            present.astype(int),
        ],
        axis=1,
    )


def read(pictures: np.ndarray, chunk: int = 128) -> np.ndarray:
    """Return the scenes int64 [B, 8] that pictures uint8 [B, 64, 64, 3] show.

    Raises ValueError for pictures of another size. Where `present` is 0 the object's columns mean nothing.
    """
    if pictures.ndim != 4 or pictures.shape[1:] != (SIZE, SIZE, 3) or pictures.dtype != np.uint8:
        raise ValueError(
            f"pictures are {pictures.dtype} {pictures.shape}; the oracle reads uint8 [B, 64, 64, 3]"
        )
    return np.concatenate([_read(pictures[i : i + chunk]) for i in range(0, len(pictures), chunk)])


def facts(media: Media, prompt: str) -> dict[str, bool]:
    """Return what of a prompt is right in a picture; ValueError where either is not of this world."""
    true = right(read(np.asarray(media.image)[None]), scenes_of([prompt]))
    return {name: bool(value[0]) for name, value in true.items()}


class OracleReward(VisionReward):
    """The oracle as one more reward: a dimension's score is the share of its facts that are right."""

    def __init__(self):
        super().__init__(FactOracle(facts, "quickstart-oracle-1"), facts_checklist(DIMENSIONS))
