"""What the bundled video judge is asked about clips, and simpler questions from which it learns faster.

The checklist's questions lie in `configs/checklists/quickstart_video.yaml`; the true answer to each is what
`quickstart.video.world.right` says under its id.
"""

import numpy as np

from quickstart.video.world import ATTRIBUTES, COLUMN, PROMPTED

# Each question about a prompt turns on the attribute of its own name.
TURNS_ON = {name: (name,) for name in PROMPTED}
DIRECT = {
    "shape": "Does it start as a {}?",
    "colour": "Does it start {}?",
    "direction": "Does it move {}?",
    "speed": "Does it move {}?",
    "background": "Is the background {}?",
}


def phrase_of(question: str, scene: np.ndarray) -> str:
    """Return the part of a scene's prompt on which the answer to a question turns: "moving left"."""
    shape, colour, direction, speed, background = (ATTRIBUTES[name][scene[COLUMN[name]]] for name in PROMPTED)
    return {
        "shape": f"a {colour} {shape}",
        "colour": f"a {colour} {shape}",
        "direction": f"moving {speed} {direction}",
        "speed": f"moving {speed} {direction}",
        "background": f"a {background} background",
    }[question]
