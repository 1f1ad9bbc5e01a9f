"""What the bundled video judge is asked about clips, and simpler questions from which it learns faster.

The checklist's questions lie in `configs/checklists/quickstart_video.yaml`; the true answer to each is what
`quickstart.video.world.right` says under its id.
"""

from quickstart.video.world import ATTRIBUTES, PROMPTED

# Each question about a prompt turns on the attribute of its own name.
DIRECT = {
    "shape": "Does it start as a {}?",
    "colour": "Does it start {}?",
    "direction": "Does it move {}?",
    "speed": "Does it move {}?",
    "background": "Is the background {}?",
}


def simple_questions() -> list[tuple[str, str, int]]:
    """Return (question, attribute, value) of every question whether an attribute has a value."""
    return [
        (DIRECT[name].format(word), name, value)
        for name in PROMPTED
        for value, word in enumerate(ATTRIBUTES[name])
    ]
