"""Checklists to start from: small, and commented where a choice has to be made."""

_HEAD = """\
# A checklist: yes/no questions, each phrased so that "yes" is good.
#
# modality: image or video; without it the questions are asked about both.
# coding: signed counts a yes as +1 and a no as -1, binary as 1 and 0.
# reduction: sum, or mean over the questions that carry weight.
# weight: 1.0 until weights are learned from preferences (mpo fit-weights).
# gate: the id of a question that asks whether there is anything to judge; where it is answered "no", the
#   gated question counts 0 instead of -1. A gate has no weight itself.
# [[prompt]] stands for the prompt of the item.
# Graded questions (very / somewhat / not at all) tell items apart better than a single one.
name: {name}
modality: {modality}
coding: signed
reduction: sum
questions:
"""

_IMAGE = """\
  fits_fully:
    text: Does the image show everything that "[[prompt]]" asks for?
    dimension: alignment
    subdimension: alignment
    weight: 1.0
  fits_mostly:
    text: Does the image show most of what "[[prompt]]" asks for?
    dimension: alignment
    subdimension: alignment
    weight: 1.0
  subject_stands_out:
    text: Does the main subject stand out?
    dimension: composition
    subdimension: main subject
    weight: 1.0
  background_pleasing:
    text: Is the background pleasing?
    dimension: composition
    subdimension: background
    weight: 1.0
  very_clear:
    text: Is the image very clear?
    dimension: quality
    subdimension: clarity
    weight: 1.0
  not_blurry:
    text: Is the image free of blur?
    dimension: quality
    subdimension: clarity
    weight: 1.0
  details_real:
    text: Do the details look real?
    dimension: fidelity
    subdimension: detail
    weight: 1.0
  has_person:
    text: Is there a person in the image?
  person_intact:
    text: Is the person's body drawn without errors?
    dimension: fidelity
    subdimension: person
    weight: 1.0
    gate: has_person
"""

_VIDEO = """\
  fits_fully:
    text: Does the video show everything that "[[prompt]]" asks for?
    dimension: alignment
    subdimension: alignment
    weight: 1.0
  fits_mostly:
    text: Does the video show most of what "[[prompt]]" asks for?
    dimension: alignment
    subdimension: alignment
    weight: 1.0
  very_clear:
    text: Is the video very clear?
    dimension: quality
    subdimension: clarity
    weight: 1.0
  not_blurry:
    text: Is the video free of blur?
    dimension: quality
    subdimension: clarity
    weight: 1.0
  camera_steady:
    text: Is the camera steady?
    dimension: stability
    subdimension: camera
    weight: 1.0
  no_flicker:
    text: Is the video free of flicker?
    dimension: stability
    subdimension: image quality
    weight: 1.0
  shape_kept:
    text: Do the objects keep their shape throughout the video?
    dimension: preservation
    subdimension: shape
    weight: 1.0
  much_motion:
    text: Do the objects move a lot?
    dimension: dynamic
    subdimension: object motion
    weight: 1.0
  some_motion:
    text: Do the objects move at all?
    dimension: dynamic
    subdimension: object motion
    weight: 1.0
  physics_plausible:
    text: Does everything move as the laws of physics allow?
    dimension: physics
    subdimension: physics
    weight: 1.0
"""

TEMPLATES = {"image": _IMAGE, "video": _VIDEO}


def template(kind: str, name: str) -> str:
    """YAML text of a checklist called `name`; kind: image | video."""
    return _HEAD.format(name=name, modality=kind) + TEMPLATES[kind]
