"""Which of two items is better, and in what."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rewards.scorecard import Scorecard
from rewards.vision_reward import VisionReward


@dataclass(frozen=True)
class Comparison:
    """Differences, first minus second, as sums of weight times answer whatever the reward's reduction.

    better: first | second | tie; None when an item is missing, and then there are no differences.
    """

    first: Scorecard
    second: Scorecard
    better: str | None
    total: float | None
    dimensions: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "first": self.first.to_dict(), "second": self.second.to_dict()}


def compare(reward: VisionReward, first, second, prompt: str) -> Comparison:
    """Compares two media by the sum of weight x (answer of the first - answer of the second), as the release
    does.
    """
    summed = VisionReward(
        reward.judge,
        replace(reward.checklist, reduction="sum"),
        reward.cache,
        reward.features,
        reward.min_mass,
    )
    one, two = summed.score([first, second], [prompt, prompt])
    if one.missing or two.missing:
        return Comparison(one, two, None, None, {})
    gaps = {name: value - two.dimensions[name] for name, value in one.dimensions.items()}
    total = one.total - two.total
    better = "tie" if total == 0 else "first" if total > 0 else "second"
    return Comparison(one, two, better, total, gaps)
