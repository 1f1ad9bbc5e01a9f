"""Scores as objective vectors: which of them a pair is judged by, with what role, weight and slack. Pure.

Shape legend of the whole project: `P` prompts, `N` candidates a prompt, `Q` questions, `K` objectives, `B`
batch, `C H W F` channels, height, width and frames of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from mpo.config import ObjectiveConfig

# Smaller differences are rounding, not preference: the same answers summed in another order compare as equal.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Objectives:
    """What dominance compares. A candidate that lacks a score is NaN throughout, and so enters no pair."""

    names: tuple[str, ...]
    values: Tensor  # [P, N, K] float64
    total: Tensor  # [P, N] float64: the weighted sum of the objectives to improve
    least: Tensor  # [K] the least allowed winner - loser: minus the tolerance, or the objective's own margin
    weights: Tensor  # [K] in the total; 0 for an objective that is only held

    def __getitem__(self, prompts: slice | Tensor) -> Objectives:
        """The same objectives for some of the prompts."""
        return replace(self, values=self.values[prompts], total=self.total[prompts])

    @property
    def valid(self) -> Tensor:
        """[P, N] True where there is a candidate and all its scores are known."""
        return ~self.total.isnan()


def objectives(
    scores: Tensor, names: Sequence[str], dims: Mapping[str, ObjectiveConfig], tolerance: float = 0.0
) -> Objectives:
    """The objectives among one level's `scores` [P, N, K], NaN where there is none.

    `dims` gives settings by name or pattern; what it does not name is to be improved. An objective to
    `improve` counts in the total with its weight, one to `hold` may only not get worse, one to `ignore` is
    left out. `tolerance` is the slack of the objectives that set none of their own. Raises ValueError for a
    name that no objective has and where nothing is left to improve.
    """
    if scores.dim() != 3 or scores.shape[-1] != len(names):
        raise ValueError(f"scores of shape {list(scores.shape)}: must be [P, N, {len(names)}], one per name")
    settings = settings_by_name(names, dims)
    kept = [k for k, setting in enumerate(settings) if setting.role != "ignore"]
    settings = [settings[k] for k in kept]
    weights = torch.tensor(
        [setting.weight if setting.role == "improve" else 0.0 for setting in settings], dtype=torch.float64
    )
    if not weights.any():
        raise ValueError(
            f"objectives.dims: leaves nothing to improve; of {', '.join(names)} "
            "one must have that role and a weight above 0"
        )
    values = scores[..., kept].double()
    values = values.masked_fill(values.isnan().any(-1, keepdim=True), torch.nan)
    least = values.new_tensor([_least_difference(setting, tolerance) for setting in settings])
    return Objectives(tuple(names[k] for k in kept), values, weighted_sum(values, weights), least, weights)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """[P, N] the total of values [P, N, K]; NaN where one of them is."""
    return (values * weights).sum(-1)


def only_total(objectives: Objectives) -> Objectives:
    """The same candidates judged by their total alone, with the held objectives kept as they are.

    This is the granularity `total`, plain DPO on a summed score (VisionReward, section 4, "total score").
    """
    held = objectives.weights == 0
    return Objectives(
        names=("total", *(name for name, hold in zip(objectives.names, held.tolist(), strict=True) if hold)),
        values=torch.cat([objectives.total[..., None], objectives.values[..., held]], dim=-1),
        total=objectives.total,
        least=torch.cat([objectives.least.new_zeros(1), objectives.least[held]]),
        weights=torch.cat([objectives.weights.new_ones(1), objectives.weights[held]]),
    )


def at_granularity(
    levels: Mapping[str, tuple[Sequence[str], Tensor]],
    granularity: str,
    dims: Mapping[str, ObjectiveConfig],
    tolerance: float = 0.0,
) -> Objectives:
    """The objectives at `granularity` from level -> (names, scores [P, N, K]).

    The total is that of the dimensions, so that their roles and weights count in it too.
    """
    names, scores = levels["dimension" if granularity == "total" else granularity]
    found = objectives(scores, names, dims, tolerance)
    return only_total(found) if granularity == "total" else found


def settings_by_name(names: Sequence[str], dims: Mapping[str, ObjectiveConfig]) -> list[ObjectiveConfig]:
    """The settings of each of `names`, which may be paths such as `quality.clarity`.

    An entry of `dims` fits the name itself, its last part, everything below it (`quality`) and what its
    pattern matches (`quality.*`); an exact name goes before a pattern or an ancestor, then the longer entry
    before the shorter. Raises ValueError, with the nearest name, for an entry that fits none.
    """
    fitting = [_entries_for(name, dims) for name in names]
    for entry in dims:
        if not any(entry in entries for entries in fitting):
            nearest = max(names, key=lambda name: SequenceMatcher(None, entry, name).ratio())
            raise ValueError(
                f"objectives.dims.{entry}: there is no such objective; the nearest is {nearest}, "
                f"all are {', '.join(names)}"
            )
    return [dims[entries[0]] if entries else ObjectiveConfig() for entries in fitting]


def _entries_for(name: str, dims: Mapping[str, ObjectiveConfig]) -> list[str]:
    """The entries of `dims` that fit `name`, the one that counts first."""
    exact = [entry for entry in dims if entry in (name, name.rpartition(".")[2])]
    broad = [entry for entry in dims if name.startswith(f"{entry}.") or fnmatchcase(name, entry)]
    return sorted(exact, key=len, reverse=True) + sorted(broad, key=len, reverse=True)


def by_prompt(prompts: Tensor, candidates: Tensor, scores: Tensor) -> Tensor:
    """[P, N, K] from M rows: indices `prompts` [M] and `candidates` [M], `scores` [M, K]; NaN elsewhere."""
    shape = (int(prompts.max()) + 1, int(candidates.max()) + 1, scores.shape[-1])
    table = torch.full(shape, torch.nan, dtype=torch.float64)
    table[prompts, candidates] = scores.double()
    return table


def _least_difference(setting: ObjectiveConfig, tolerance: float) -> float:
    if setting.role == "improve" and setting.margin > 0:
        return setting.margin
    return -(tolerance if setting.tolerance is None else setting.tolerance)
