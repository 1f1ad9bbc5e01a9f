"""The bundled world: scenes of one object that a prompt names, and a renderer that errs on purpose.

A batch of scenes is an int64 array [B, 8]: a column for each of `ATTRIBUTES`, an index into its values.
"""

from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

from quickstart.scenes import corrupted, covered, find_scenes, named_scenes

SIZE = 64
ATTRIBUTES = {
    "shape": ("circle", "square", "triangle", "star"),
    "colour": ("red", "green", "blue", "yellow", "purple", "orange"),
    "size": ("small", "large"),
    "place": ("left", "right", "top", "bottom", "center"),
    "background": ("white", "black", "gray", "cyan"),
    "blur": ("none", "slight", "strong"),
    "specks": ("none", "few", "many"),
    "present": ("no", "yes"),
}
NAMES = tuple(ATTRIBUTES)
PROMPTED = NAMES[:5]  # what a prompt names; the others are defects, and an object is always asked for
COLUMN = {name: index for index, name in enumerate(NAMES)}

OBJECT_RGB = np.array(
    [(214, 38, 38), (38, 160, 56), (36, 64, 214), (240, 218, 36), (132, 44, 176), (246, 140, 24)], np.float32
)
BACKGROUND_RGB = np.array([(242, 242, 242), (16, 16, 16), (128, 128, 128), (130, 222, 232)], np.float32)
SPECK_RGB = np.array([(20, 20, 20), (236, 236, 236), (20, 20, 20), (20, 20, 20)], np.float32)  # by background
CENTRE_XY = np.array([(-14, 0), (14, 0), (0, -14), (0, 14), (0, 0)]) + SIZE // 2  # by place
RADII = np.array([(7.6, 8.2, 8.8), (12.6, 13.4, 14.2)])  # by size: pixels, three variants
BLUR_SIGMA = (0.0, 1.4, 2.7)  # pixels
BLUR_OPACITY = (1.0, 0.72, 0.46)  # blur fades too: a small autoencoder keeps a shade better than an edge
SPECK_COUNT = ((0, 0), (3, 4), (12, 15))  # lowest and highest, by level
SPECK_WIDTH = 3
CENTRE_JITTER = 2  # pixels, either way
COLOUR_JITTER = 6  # of 255, either way, by channel
CELL = 8  # specks keep to different cells of this many pixels, as the autoencoder sees them


@cache
def silhouette(shape: int, radius: float, sigma: float, scale: int = 4) -> np.ndarray:
    """Return the coverage [64, 64] in [0, 1] of a shape centred on pixel (32, 32), blurred by `sigma`."""
    sharp = covered(ATTRIBUTES["shape"][shape], radius, SIZE, scale)
    return gaussian_filter(sharp, sigma, mode="constant") if sigma else sharp


@cache
def _silhouettes() -> np.ndarray:
    """Return every silhouette the renderer uses on a wide canvas: [shape, size, variant, blur, 128, 128]."""
    shapes = range(len(ATTRIBUTES["shape"]))
    drawn = [[[[silhouette(s, r, b) for b in BLUR_SIGMA] for r in radii] for radii in RADII] for s in shapes]
    return np.pad(np.array(drawn), [(0, 0)] * 4 + [(SIZE // 2, SIZE // 2)] * 2)


def all_scenes() -> np.ndarray:
    """Return every scene a prompt can name, without defects: [960, 8]."""
    return named_scenes(ATTRIBUTES, PROMPTED, [0, 0, 1])


def corrupt(scenes: np.ndarray, rng: np.random.Generator, rates: dict[str, float]) -> np.ndarray:
    """Return `scenes` with each attribute replaced, at its rate, by another of its values chosen evenly."""
    return corrupted(scenes, rng, rates, ATTRIBUTES)


def _specks(level: int, coverage: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return the top-left pixels (row, column) of a level's specks, in different cells and off the object."""
    covered = coverage.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL).max(axis=(1, 3)) > 0.02
    low, high = SPECK_COUNT[level]
    cells = rng.permutation(np.flatnonzero(~covered.ravel()))[: rng.integers(low, high + 1)]
    offsets = rng.integers(1, CELL - SPECK_WIDTH, (len(cells), 2))  # off the cell's edge: specks never touch
    corners = np.stack(np.divmod(cells, SIZE // CELL), axis=1) * CELL + offsets
    return [(int(row), int(column)) for row, column in corners]


def render(scenes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return pictures uint8 [B, 64, 64, 3] of scenes [B, 8]; position, radius and colours jitter a little."""
    count = len(scenes)
    shape, colour, size, place, background, blur, specks, present = scenes.T
    masks = _silhouettes()[shape, size, rng.integers(RADII.shape[1], size=count), blur]
    centre = CENTRE_XY[place] + rng.integers(-CENTRE_JITTER, CENTRE_JITTER + 1, (count, 2))
    pixels = np.arange(SIZE)[None] + SIZE  # a silhouette's centre lies at pixel SIZE of its canvas
    columns, rows = pixels - centre[:, :1], pixels - centre[:, 1:]
    coverage = masks[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    opacity = np.array(BLUR_OPACITY, np.float32)[blur] * present
    coverage = coverage * opacity.astype(np.float32)[:, None, None]

    def shade(rgb: np.ndarray) -> np.ndarray:
        return rgb + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, rgb.shape).astype(np.float32)

    ground, paint = shade(BACKGROUND_RGB[background]), shade(OBJECT_RGB[colour])
    dirt = shade(SPECK_RGB[background])
    pictures = ground[:, None, None] + coverage[..., None] * (paint - ground)[:, None, None]
    for index in np.flatnonzero(specks):
        for row, column in _specks(specks[index], coverage[index], rng):
            pictures[index, row : row + SPECK_WIDTH, column : column + SPECK_WIDTH] = dirt[index]
    return np.clip(pictures.round(), 0, 255).astype(np.uint8)


def prompt_of(scene: np.ndarray) -> str:
    """Return the prompt that names a scene [8]: "a small red circle on the left of a white background"."""
    shape, colour, size, place, background = (ATTRIBUTES[n][scene[COLUMN[n]]] for n in PROMPTED)
    where = f"{'at' if place == 'center' else 'on'} the {place}"
    return f"a {size} {colour} {shape} {where} of a {background} background"


def scenes_of(prompts: list[str]) -> np.ndarray:
    """Return the scenes [B, 8] that prompts of this world name, without defects.

    Raises ValueError for a prompt that names no scene of this world.
    """
    return find_scenes(prompts, all_scenes, prompt_of)


def right(scenes: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Return, by attribute, whether scenes [B, 8] are as asked [B, 8] and free of defects: bool [B] each.

    Without an object its shape, colour, size, place and clearness are wrong; the other two still count.
    """
    present = scenes[:, COLUMN["present"]] == 1
    same = {name: scenes[:, COLUMN[name]] == asked[:, COLUMN[name]] for name in PROMPTED}
    answers = {name: same[name] & present for name in PROMPTED if name != "background"}
    answers["background"] = same["background"]
    answers["clear"] = (scenes[:, COLUMN["blur"]] == 0) & present
    answers["clean"] = scenes[:, COLUMN["specks"]] == 0
    return answers
