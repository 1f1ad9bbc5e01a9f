"""The bundled world in motion: clips of an object on its way, which a prompt names, by a renderer that errs.

A batch of scenes is an int64 array [B, 10]: a column for each of `ATTRIBUTES`, an index into its values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from quickstart.scenes import corrupted, covered, find_scenes, named_scenes

SIZE, FRAMES = 32, 9
ATTRIBUTES = {
    "shape": ("circle", "square", "triangle"),
    "colour": ("red", "green", "blue", "yellow"),
    "direction": ("left", "right", "up", "down"),
    "speed": ("slowly", "quickly"),
    "background": ("white", "gray", "pink"),
    "jitter": ("no", "yes"),  # the object shakes across its path
    "freeze": ("no", "halfway", "throughout"),  # for how much of the clip it stands still
    "fade": ("no", "yes"),
    "recolour": ("no", "yes"),  # on its way it takes another colour
    "reshape": ("no", "yes"),  # ... or another shape
}
NAMES = tuple(ATTRIBUTES)
PROMPTED = NAMES[:5]  # what a prompt names; the others are defects
COLUMN = {name: index for index, name in enumerate(NAMES)}

OBJECT_RGB = np.array([(214, 38, 38), (38, 160, 56), (36, 64, 214), (240, 218, 36)], np.float32)
# Pale all: where backgrounds differ much, a denoiser learns them alone and nothing of what moves before them.
BACKGROUND_RGB = np.array([(242, 242, 242), (186, 186, 186), (246, 190, 200)], np.float32)
HEADING_XY = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # by direction
STEP = np.array([1, 2])  # by speed: pixels a frame
RADII = (5.5, 6.0, 6.5)  # pixels, three variants
SHAKE = 2  # pixels to one side, then to the other
STOPS = (4, 5)  # the frame from which an object that freezes halfway stands still
CHANGES = (3, 4, 5)  # the first frame of another colour or shape
OPACITY = np.array([1, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32)  # of an object that fades, by frame
COLOUR_JITTER = 6  # of 255, either way, by channel


@cache
def silhouette(shape: int, radius: float, scale: int = 8) -> np.ndarray:
    """Return the coverage [32, 32] in [0, 1] of a shape centred on pixel (16, 16)."""
    return covered(ATTRIBUTES["shape"][shape], radius, SIZE, scale)


@cache
def _silhouettes() -> np.ndarray:
    """Return every silhouette the renderer uses on a wide canvas: [shape, variant, 64, 64]."""
    drawn = [[silhouette(shape, radius) for radius in RADII] for shape in range(len(ATTRIBUTES["shape"]))]
    return np.pad(np.array(drawn), [(0, 0)] * 2 + [(SIZE // 2, SIZE // 2)] * 2)


def all_scenes() -> np.ndarray:
    """Return every scene a prompt can name, without defects: [288, 10]."""
    return named_scenes(ATTRIBUTES, PROMPTED, [0] * (len(NAMES) - len(PROMPTED)))


def corrupt(scenes: np.ndarray, rng: np.random.Generator, rates: dict[str, float]) -> np.ndarray:
    """Return `scenes` with each attribute replaced, at its rate, by another of its values chosen evenly."""
    return corrupted(scenes, rng, rates, ATTRIBUTES)


def _centres(scenes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return where the object is in each frame: pixels (x, y), int64 [B, T, 2]."""
    count, frames = len(scenes), np.arange(FRAMES)
    heading = HEADING_XY[scenes[:, COLUMN["direction"]]]
    step = STEP[scenes[:, COLUMN["speed"]]]
    stop = np.array([FRAMES, 0, 0])[scenes[:, COLUMN["freeze"]]]
    halfway = scenes[:, COLUMN["freeze"]] == 1
    stop[halfway] = rng.choice(STOPS, halfway.sum())
    travelled = np.minimum(frames, stop[:, None]) * step[:, None]
    start = SIZE // 2 - heading * (step * (FRAMES - 1) // 2)[:, None]  # the whole way is centred
    side = np.where((frames + rng.integers(0, 2, (count, 1))) % 2, SHAKE, -SHAKE)
    shake = side * scenes[:, COLUMN["jitter"], None]
    return (
        start[:, None] + travelled[..., None] * heading[:, None] + shake[..., None] * heading[:, None, ::-1]
    )


def _changing(scenes: np.ndarray, name: str, defect: str, rng: np.random.Generator) -> np.ndarray:
    """Return an attribute's value in each frame [B, T]: another one after its change, where it changes."""
    count, values = len(scenes), len(ATTRIBUTES[name])
    first = scenes[:, COLUMN[name], None]
    second = (first + rng.integers(1, values, (count, 1))) % values
    changed = np.arange(FRAMES) >= rng.choice(CHANGES, (count, 1))
    return np.where(changed & (scenes[:, COLUMN[defect], None] == 1), second, first)


@dataclass(frozen=True)
class Tracks:
    """What each frame of B clips shows: shape and colour [B, T], centre (x, y) in pixels [B, T, 2], opacity
    [B, T]; and the background [B]."""

    shape: np.ndarray
    colour: np.ndarray
    centre: np.ndarray
    opacity: np.ndarray
    background: np.ndarray

    def rows(self, index: np.ndarray) -> "Tracks":
        """Return the tracks of some of the clips."""
        return Tracks(**{name: track[index] for name, track in vars(self).items()})

    @staticmethod
    def cat(batches: Sequence["Tracks"]) -> "Tracks":
        """Return several batches as one."""
        return Tracks(
            **{name: np.concatenate([vars(batch)[name] for batch in batches]) for name in vars(batches[0])}
        )


def animate(scenes: np.ndarray, rng: np.random.Generator) -> Tracks:
    """Return scenes [B, 10] frame by frame."""
    return Tracks(
        shape=_changing(scenes, "shape", "reshape", rng),
        colour=_changing(scenes, "colour", "recolour", rng),
        centre=_centres(scenes, rng),
        opacity=np.where(scenes[:, COLUMN["fade"], None] == 1, OPACITY, np.float32(1)),
        background=scenes[:, COLUMN["background"]],
    )


def draw(tracks: Tracks, rng: np.random.Generator) -> np.ndarray:
    """Return clips uint8 [B, 9, 32, 32, 3]; radius and colours jitter a little."""
    count = len(tracks.shape)
    masks = _silhouettes()[tracks.shape, rng.integers(len(RADII), size=(count, 1))]
    pixels = np.arange(SIZE) + SIZE  # a silhouette's centre lies at pixel SIZE of its canvas
    columns, rows = (pixels - tracks.centre[..., axis, None] for axis in (0, 1))
    item, frame = np.arange(count)[:, None, None, None], np.arange(FRAMES)[None, :, None, None]
    coverage = masks[item, frame, rows[..., :, None], columns[..., None, :]]
    coverage = (coverage * tracks.opacity[..., None, None])[..., None]

    def shade(rgb: np.ndarray) -> np.ndarray:
        return rgb + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, (count, 1, 3)).astype(np.float32)

    ground = shade(BACKGROUND_RGB[tracks.background][:, None])[:, :, None, None]
    paint = shade(OBJECT_RGB[tracks.colour])[:, :, None, None]
    return np.clip((ground + coverage * (paint - ground)).round(), 0, 255).astype(np.uint8)


def render(scenes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return clips uint8 [B, 9, 32, 32, 3] of scenes [B, 10]."""
    return draw(animate(scenes, rng), rng)


def prompt_of(scene: np.ndarray) -> str:
    """Return the prompt that names a scene [10]: "a red circle moving slowly left on a white background"."""
    shape, colour, direction, speed, background = (ATTRIBUTES[n][scene[COLUMN[n]]] for n in PROMPTED)
    return f"a {colour} {shape} moving {speed} {direction} on a {background} background"


def scenes_of(prompts: list[str]) -> np.ndarray:
    """Return the scenes [B, 10] that prompts of this world name, without defects.

    Raises ValueError for a prompt that names no scene of this world.
    """
    return find_scenes(prompts, all_scenes, prompt_of)


def right(scenes: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Return, by attribute, whether scenes [B, 10] are as asked [B, 10] and free of defects: bool [B] each.

    Shape and colour are those that a clip begins with. An object that stands still has neither the direction
    nor the speed asked for.
    """
    moves = scenes[:, COLUMN["freeze"]] < 2
    answers = {name: scenes[:, COLUMN[name]] == asked[:, COLUMN[name]] for name in PROMPTED}
    for name in ("direction", "speed"):
        answers[name] &= moves
    sound = {name: scenes[:, COLUMN[name]] == 0 for name in NAMES[len(PROMPTED) :]}
    return answers | {
        "clear": sound["fade"],
        "same_colour": sound["recolour"],
        "same_shape": sound["reshape"],
        "moves": moves,
        "keeps_moving": sound["freeze"],
        "smooth": sound["jitter"],
    }
