"""What the bundled video judge is taught: scenes as they come to it, and the annotator of their clips."""

from pathlib import Path

import numpy as np

from quickstart.judge_recipe import Annotator
from quickstart.video.questions import DIRECT, TURNS_ON, phrase_of
from quickstart.video.world import ATTRIBUTES, COLUMN, prompt_of, right
from rewards.checklist import Checklist

CHECKLIST = Path(__file__).parents[2] / "configs" / "checklists" / "quickstart_video.yaml"
DEFECT = {"jitter": 0.4, "freeze": 0.55, "fade": 0.4, "recolour": 0.4, "reshape": 0.4}  # shares of clips


def random_scenes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 10] with every named attribute evenly likely, and defects at their shares."""
    scenes = np.stack([rng.integers(0, len(values), count) for values in ATTRIBUTES.values()], axis=1)
    for name, share in DEFECT.items():
        defect = rng.integers(1, len(ATTRIBUTES[name]), count)
        scenes[:, COLUMN[name]] = np.where(rng.random(count) < share, defect, 0)
    return scenes


def annotator() -> Annotator:
    """Return the annotator of the checklist's questions."""
    return Annotator(
        checklist=Checklist.from_yaml(CHECKLIST),
        attributes=ATTRIBUTES,
        turns_on=TURNS_ON,
        direct=DIRECT,
        truths=right,
        prompt_of=prompt_of,
        phrase_of=phrase_of,
    )
