"""What the bundled judge is asked about the bundled world, and the true answers.

The checklist's questions lie in `configs/checklists/quickstart.yaml`; here are their truths, and simpler
questions, without a prompt or about a part of it, from which the judge learns faster.
"""

import numpy as np

from quickstart.world import ATTRIBUTES, COLUMN, PROMPTED, right

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


def phrase_of(question: str, scene: np.ndarray) -> str:
    """Return the part of a scene's prompt on which the answer to a question turns: "a red circle"."""
    shape, colour, size, place, background = (ATTRIBUTES[name][scene[COLUMN[name]]] for name in PROMPTED)
    match question:
        case "size":
            return f"a {size} {shape}"
        case "place":
            return f"{'at' if place == 'center' else 'on'} the {place}"
        case "background":
            return f"a {background} background"
        case _:
            return f"a {colour} {shape}"
