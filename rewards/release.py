"""VisionReward's own checklists, read from the files of its release (github.com/THUDM/VisionReward).

The files are no part of this project: `rewards.fetch` brings them, and everything here refers to their lines
by number. What a line is about was worked out from the paper (arXiv 2412.21059) and the annotation fields of
its datasets.

The release's scoring has quirks that its published numbers depend on; `policy` keeps them or mends them:

| about                              | release                              | strict                         |
|------------------------------------|--------------------------------------|--------------------------------|
| image: is there a body, face, hand | gates those questions, unscored      | the same                       |
| image: safety                      | counts 0 where there is no body      | always counts                  |
| image: is there a background,      | asked, neither scored nor used       | gates those questions,         |
|   lighting (full list)             |                                      |   unscored                     |
| video: is there lighting, letters  | scored like any question             | gates those questions,         |
|                                    |                                      |   unscored                     |
| video: newline after a question    | goes to the judge                    | stripped                       |

Both code answers as +1 and -1; the image score is a sum with VQAScore as alignment, the video score a mean.
The full and the selected lists score alike: a line that is not selected has weight 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from rewards.checklist import Checklist, Feature, Question
from rewards.choice import check_choice

POLICIES = ("release", "strict")
VQASCORE = "clip-flant5-xxl"
# The lines of the full lists in order: dimension, sub-dimension, and how many lines; or the id of the single
# line that asks whether there is something to judge.
_LINES: dict[str, tuple[tuple[str, str, int | str], ...]] = {
    "image": (
        ("fidelity", "body", "has_body"),
        ("fidelity", "face", "has_face"),
        ("fidelity", "hands", "has_hands"),
        ("composition", "symmetry", 2),
        ("composition", "object_pairing", 2),
        ("composition", "main_object", 2),
        ("composition", "richness", 4),
        ("composition", "background", 2),
        ("composition", "background", "has_background"),
        ("quality", "clarity", 4),
        ("quality", "color_brightness", 2),
        ("quality", "color_aesthetic", 2),
        ("quality", "lighting_distinction", 2),
        ("quality", "lighting_distinction", "has_lighting"),
        ("quality", "lighting_aesthetic", 2),
        ("safety_emotion", "emotion", 4),
        ("fidelity", "detail_refinement", 6),
        ("fidelity", "detail_reality", 4),
        ("fidelity", "body", 4),
        ("fidelity", "face", 4),
        ("fidelity", "hands", 4),
        ("safety_emotion", "safety", 4),
    ),
    "video": (
        ("alignment", "alignment", 4),
        ("composition", "composition", 2),
        ("stability", "focus", 2),
        ("stability", "camera_movement", 2),
        ("quality", "color", 4),
        ("quality", "lighting_accuracy", 2),
        ("quality", "lighting_accuracy", "has_lighting"),
        ("quality", "lighting_aesthetic", 3),
        ("preservation", "shape_at_beginning", 3),
        ("preservation", "shape_throughout", 4),
        ("dynamic", "object_motion", 4),
        ("dynamic", "camera_motion", 4),
        ("stability", "movement_smoothness", 2),
        ("fidelity", "movement_reality", 2),
        ("quality", "clarity", 4),
        ("stability", "image_quality_stability", 4),
        ("stability", "camera_stability", 2),
        ("fidelity", "detail_refinement", 4),
        ("fidelity", "letters", 2),
        ("fidelity", "letters", "has_letters"),
        ("physics", "physics_law", 4),
        ("safety", "safety", 4),
    ),
}
# The selected lists' lines, as line numbers of the full lists.
_IMAGE_SELECT = [*range(5), *range(7, 13), *range(16, 22), 23, 29, 33, 37, 38, 43, 45, 46, 49, 50, 51, 57, 58]
_VIDEO_SELECT = [0, 1, 3, 4, 5, 9, 13, *range(14, 24), 26, 31, 33, 35, 37, 43, 49, 51, 52, 53, 55, 59]
_SELECT = {"image": _IMAGE_SELECT, "video": _VIDEO_SELECT}

# gate -> sub-dimensions whose questions it gates
_GATES = {
    "release": {"has_body": ("body", "safety"), "has_face": ("face",), "has_hands": ("hands",)},
    "strict": {
        "has_body": ("body",),
        "has_face": ("face",),
        "has_hands": ("hands",),
        "has_background": ("background",),
        "has_lighting": ("lighting_accuracy", "lighting_distinction", "lighting_aesthetic"),
        "has_letters": ("letters",),
    },
}


def read_release(folder: str | Path, modality: str, policy: str, questions: str) -> Checklist:
    """VisionReward's checklist from the files in `folder`.

    modality: image | video. policy: release | strict, see above. questions: select (what the release asks) |
    full.
    """
    check_choice("modality", modality, tuple(_LINES))
    check_choice("policy", policy, POLICIES)
    check_choice("questions", questions, ("select", "full"))
    folder = Path(folder)
    suffix = "_select" if questions == "select" else ""
    texts = _read_lines(folder / f"VisionReward_{modality}_qa{suffix}.txt")
    numbers = _SELECT[modality] if questions == "select" else list(range(_count(modality)))
    if len(texts) != len(numbers):
        raise ValueError(f"{folder}: {len(texts)} questions in the {questions} list, needed {len(numbers)}")
    if modality == "image":
        weights, features = _image_weights(folder, questions)
    else:
        weights, features = _video_weights(folder), ()
    keep_newline = modality == "video" and policy == "release"
    table = list(_describe(modality))
    gates = _GATES[policy]
    present = {table[number][0] for number in numbers}
    gate_of = {sub: gate for gate, subs in gates.items() if gate in present for sub in subs}
    entries = []
    for number, text in zip(numbers, texts, strict=True):
        name, dimension, subdimension = table[number]
        is_gate = name in gates
        entries.append(
            Question(
                id=name,
                text=text if keep_newline else text.strip(),
                dimension=dimension,
                subdimension=subdimension,
                weight=0.0 if is_gate else weights.get(number, 0.0),
                gate=None if name.startswith("has_") else gate_of.get(subdimension),
            )
        )
    return Checklist(
        name=f"visionreward-{modality}-{policy}",
        questions=tuple(entries),
        coding="signed",
        reduction="sum" if modality == "image" else "mean",
        features=features,
        modality=modality,
    )


def release_modality(folder: str | Path) -> str:
    """image or video, told from the question lists in a folder of the release's files."""
    found = [kind for kind in _LINES if any(Path(folder).glob(f"VisionReward_{kind}_qa*.txt"))]
    if len(found) != 1:
        raise ValueError(
            f"{folder}: a checklist folder holds VisionReward_image_qa*.txt or VisionReward_video_qa*.txt"
        )
    return found[0]


def _describe(modality: str) -> Iterator[tuple[str, str, str]]:
    """Id, dimension and sub-dimension of every line of a full list."""
    numbers: dict[str, int] = {}
    for dimension, subdimension, lines in _LINES[modality]:
        if isinstance(lines, str):
            yield lines, dimension, subdimension
            continue
        for _ in range(lines):
            numbers[subdimension] = numbers.get(subdimension, 0) + 1
            yield f"{subdimension}_{numbers[subdimension]}", dimension, subdimension


def _count(modality: str) -> int:
    return sum(1 for _ in _describe(modality))


def _image_weights(folder: Path, questions: str) -> tuple[dict[int, float], tuple[Feature, ...]]:
    """Weight by line of the full list, and the alignment feature, which comes first in the weight files."""
    unscored = {number for number, (name, *_) in enumerate(_describe("image")) if name.startswith("has_")}
    numbers = _SELECT["image"] if questions == "select" else range(_count("image"))
    path = folder / ("weight_select.json" if questions == "select" else "weight.json")
    alignment, *rest = _read_weights(path)
    scored = [number for number in numbers if number not in unscored]
    if len(rest) != len(scored):
        raise ValueError(f"{path}: {len(rest) + 1} weights, needed {len(scored) + 1}")
    feature = Feature("alignment", "alignment", "alignment", alignment, VQASCORE)
    return dict(zip(scored, rest, strict=True)), (feature,)


def _video_weights(folder: Path) -> dict[int, float]:
    """Weight by line of the full list; the release has weights for the selected lines only."""
    path = folder / "weight.json"
    weights = _read_weights(path)
    if len(weights) != len(_VIDEO_SELECT):
        raise ValueError(f"{path}: {len(weights)} weights, needed {len(_VIDEO_SELECT)}")
    return dict(zip(_VIDEO_SELECT, weights, strict=True))


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the release's question lists are needed")
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def _read_weights(path: Path) -> list[float]:
    """A weight file of either shape: a list, or a mapping with `coef` and `intercept`."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the release's weights are needed")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if isinstance(content, dict):
        intercept = content.get("intercept", 0)
        if any(intercept if isinstance(intercept, list) else [intercept]):
            raise ValueError(f"{path}: intercept {content['intercept']}, needed 0")
        content = content.get("coef")
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: needed a list of weights, or a mapping with `coef`")
    if not all(isinstance(weight, (int, float)) and math.isfinite(weight) for weight in content):
        raise ValueError(f"{path}: a weight is not a number")
    return [float(weight) for weight in content]
