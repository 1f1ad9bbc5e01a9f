"""What the bundled worlds share: scenes as rows of attributes, and shapes as coverage of pixels.

A batch of scenes is an int64 array [B, A]: a column for each attribute, an index into its values.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

Attributes = Mapping[str, Sequence[str]]


def named_scenes(attributes: Attributes, prompted: Sequence[str], others: Sequence[int]) -> np.ndarray:
    """Return every scene [P, A] that a prompt can name: `prompted` come first, the rest is `others`."""
    grid = np.meshgrid(*[np.arange(len(attributes[name])) for name in prompted], indexing="ij")
    named = np.stack(grid, axis=-1).reshape(-1, len(prompted))
    return np.concatenate([named, np.tile(others, (len(named), 1))], axis=1)


def corrupted(
    scenes: np.ndarray, rng: np.random.Generator, rates: Mapping[str, float], attributes: Attributes
) -> np.ndarray:
    """Return `scenes` with each attribute replaced, at its rate, by another of its values chosen evenly."""
    scenes, names = scenes.copy(), list(attributes)
    for name, rate in rates.items():
        column, count = scenes[:, names.index(name)], len(attributes[name])
        wrong = rng.random(len(scenes)) < rate
        column[wrong] = (column[wrong] + rng.integers(1, count, wrong.sum())) % count
    return scenes


@cache
def _by_prompt(
    all_scenes: Callable[[], np.ndarray], prompt_of: Callable[[np.ndarray], str]
) -> dict[str, np.ndarray]:
    return {prompt_of(scene): scene for scene in all_scenes()}


def find_scenes(
    prompts: Sequence[str], all_scenes: Callable[[], np.ndarray], prompt_of: Callable[[np.ndarray], str]
) -> np.ndarray:
    """Return those of a world's scenes [B, A] that prompts name; ValueError for a prompt that names none."""
    known = _by_prompt(all_scenes, prompt_of)
    for prompt in prompts:
        if prompt not in known:
            example = next(iter(known))
            raise ValueError(f"prompt {prompt!r} names no scene of this world; one that does: {example!r}")
    return np.array([known[prompt] for prompt in prompts])


def outline(shape: str) -> np.ndarray:
    """Return the corners [V, 2] (x right, y down) of a shape of unit radius; areas are alike."""
    if shape == "circle":
        angles, radii = np.arange(64) * (2 * np.pi / 64), np.full(64, 1.0)
    elif shape == "square":
        angles, radii = np.pi / 4 + np.arange(4) * (np.pi / 2), np.full(4, 1.25)
    elif shape == "triangle":
        angles, radii = -np.pi / 2 + np.arange(3) * (2 * np.pi / 3), np.full(3, 1.4)
    else:
        angles, radii = -np.pi / 2 + np.arange(10) * (np.pi / 5), np.where(np.arange(10) % 2, 0.54, 1.4)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def covered(shape: str, radius: float, size: int, scale: int) -> np.ndarray:
    """Return how far each pixel [size, size] is covered, in [0, 1], by a shape centred on pixel
    (size / 2, size / 2). Each pixel is `scale` by `scale` points, inside or outside.
    """
    corners = outline(shape) * radius
    axis = (np.arange(size * scale) + 0.5) / scale - 0.5 - size // 2
    x, y = axis[None, :], axis[:, None]
    inside = np.zeros((size * scale, size * scale), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)  # even-odd rule: does a ray to the right cross this edge?
        if y0 != y1:
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside.reshape(size, scale, size, scale).mean(axis=(1, 3)).astype(np.float32)
