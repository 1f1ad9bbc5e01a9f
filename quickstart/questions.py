"""What the bundled judge is asked about the bundled world, and the true answers.

The checklist's questions lie in `configs/checklists/quickstart.yaml`; here are their truths, and simpler
questions about one attribute, from which the judge learns faster.
"""

import numpy as np

from quickstart.world import ATTRIBUTES, COLUMN, NAMES, PROMPTED, right

OPEN_WHAT = {"blur": "How blurred is the object?", "specks": "How many specks are there?"}
DIRECT = {
    "shape": "Is the object a {}?",
    "colour": "Is the object {}?",
    "size": "Is the object {}?",
    "place": "Is the object at the {}?",
    "background": "Is the background {}?",
}


def truths(scenes: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Return the true answer (bool [B]) to each question of the checklist by id.

    `scenes` [B, 8] is what the pictures show, `asked` [B, 8] what their prompts name.
    """
    as_asked = right(scenes, asked)
    present = scenes[:, COLUMN["present"]] == 1
    return {
        "object": present,
        "shape": as_asked["shape"],
        "colour": as_asked["colour"],
        "subject_exactly": as_asked["shape"] & as_asked["colour"],
        "subject_at_all": as_asked["shape"] | as_asked["colour"],
        "place": as_asked["place"],
        "size": as_asked["size"],
        "background": as_asked["background"],
        "very_clear": as_asked["clear"],
        "clear_at_all": present & (scenes[:, COLUMN["blur"]] < 2),
        "very_clean": as_asked["clean"],
        "clean_at_all": scenes[:, COLUMN["specks"]] < 2,
    }


# For each question about a prompt, the attributes on which its answer turns.
TURNS_ON = {
    "shape": ("shape",),
    "colour": ("colour",),
    "subject_exactly": ("shape", "colour"),
    "subject_at_all": ("shape", "colour"),
    "place": ("place",),
    "size": ("size",),
    "background": ("background",),
}


def open_question(attribute: str) -> str:
    """Return the question that is answered with the value of an attribute: "What is the shape?"."""
    return OPEN_WHAT.get(attribute, f"What is the {attribute}?")


def simple_questions() -> list[tuple[str, str, int | None]]:
    """Return (question, attribute, value) of every question about one attribute alone.

    value None: answered with the attribute's own word. Otherwise: yes where the attribute has that value.
    """
    attributes = [name for name in NAMES if name != "present"]
    opened = [(open_question(name), name, None) for name in attributes]
    direct = [
        (DIRECT[name].format(word), name, value)
        for name in PROMPTED
        for value, word in enumerate(ATTRIBUTES[name])
    ]
    return opened + direct
