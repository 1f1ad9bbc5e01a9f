"""Scored checklists: a judge answers yes/no questions about images and videos; the weighted sum is the score.

`from rewards import load_reward, load_judge, load_checklist`. Importing this package imports nothing heavy.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AnswerCache": "rewards.cache",
    "Checklist": "rewards.checklist",
    "Feature": "rewards.checklist",
    "Question": "rewards.checklist",
    "Scorecard": "rewards.scorecard",
    "VisionReward": "rewards.vision_reward",
    "check_reward": "rewards.build",
    "load_checklist": "rewards.build",
    "load_judge": "rewards.build",
    "load_media": "rewards.media",
    "load_reward": "rewards.build",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
