"""What the bundled judge is taught: scenes as they come to it, and the annotator of their pictures."""

from pathlib import Path

import numpy as np

from quickstart.judge_recipe import Annotator
from quickstart.questions import DIRECT, TURNS_ON, phrase_of, truths
from quickstart.world import ATTRIBUTES, COLUMN, prompt_of
from rewards.checklist import Checklist

CHECKLIST = Path(__file__).parents[1] / "configs" / "checklists" / "quickstart.yaml"
ABSENT = 0.08  # share of pictures without an object
DEFECT = (0.5, 0.25, 0.25)  # of blur and of specks, by level


def random_scenes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 8] with every attribute evenly likely, and defects and absence at their rates."""
    scenes = np.stack([rng.integers(0, len(values), count) for values in ATTRIBUTES.values()], axis=1)
    for defect in ("blur", "specks"):
        scenes[:, COLUMN[defect]] = rng.choice(3, count, p=DEFECT)
    scenes[:, COLUMN["present"]] = rng.random(count) >= ABSENT
    return scenes


def annotator() -> Annotator:
    """Return the annotator of the checklist's questions."""
    return Annotator(
        checklist=Checklist.from_yaml(CHECKLIST),
        attributes=ATTRIBUTES,
        turns_on=TURNS_ON,
        direct=DIRECT,
        truths=truths,
        prompt_of=prompt_of,
        phrase_of=phrase_of,
        keep={"subject_exactly": 0.5**0.5, "subject_at_all": 1 - 0.5**0.5},
    )
