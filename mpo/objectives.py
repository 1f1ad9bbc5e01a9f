"""Scores as objective vectors: which of them a pair is judged by, with what role, weight and slack. Pure.

Shape legend of the whole project: `P` prompts, `N` candidates a prompt, `Q` questions, `K` objectives, `B`
batch, `C H W F` channels, height, width and frames of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mpo.config import ObjectiveConfig

if TYPE_CHECKING:  # so that a plan knows the names of objectives at once
    from torch import Tensor

# Smaller differences are rounding, not preference: the same answers summed in another order compare as equal.
ROUNDING = 1e-9
FINER = ("dimension", "subdimension", "question")  # each level is the sum of its parts on the next


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
    def spread(self) -> Tensor:
        """[] the widest difference of totals within a prompt; 0 where nothing is scored."""
        low, high = (self.total.nan_to_num(fill) for fill in (math.inf, -math.inf))
        return (high.amax(1) - low.amin(1)).amax().clamp(min=0.0)

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
    values = scores[..., kept].double()
    values = values.masked_fill(values.isnan().any(-1, keepdim=True), math.nan)
    weights = values.new_tensor(weights_in_total(names, dims))[kept]
    least = values.new_tensor([_least_difference(setting, tolerance) for setting in settings])
    return Objectives(tuple(names[k] for k in kept), values, weighted_sum(values, weights), least, weights)


def weights_in_total(names: Sequence[str], dims: Mapping[str, ObjectiveConfig]) -> list[float]:
    """The weight of each of `names` in the total, 0 for what is held or ignored.

    Raises ValueError where all are 0, and as `settings_by_name` does.
    """
    settings = settings_by_name(names, dims)
    weights = [setting.weight if setting.role == "improve" else 0.0 for setting in settings]
    if not any(weights):
        raise ValueError(
            f"objectives.dims: leaves nothing to improve; of {', '.join(names)} "
            "one must have that role and a weight above 0"
        )
    return weights


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """[P, N] the total of values [P, N, K]; NaN where one of them is."""
    return (values * weights).sum(-1)


def only_total(objectives: Objectives) -> Objectives:
    """The same candidates judged by their total alone, with the held objectives kept as they are.

    This is the granularity `total`, plain DPO on a summed score (VisionReward, section 4, "total score").
    """
    import torch

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

    The total is that of the dimensions, so that their roles and weights count in it too. An entry of `dims`
    that names something finer than the granularity makes it an objective of its own; what it is a part of
    is then the sum of its other parts. Raises ValueError as `objectives` and `parts` do.
    """
    import torch

    names = {level: found for level, (found, _) in levels.items()}
    columns = {
        name: levels[level][1][..., k]
        for level in FINER
        if level in names
        for k, name in enumerate(names[level])
    }
    found = parts(names, granularity, dims)
    scores = [columns[name] - sum(columns[part] for part in taken) for name, taken in found.items()]
    made = objectives(torch.stack(scores, -1), list(found), dims, tolerance)
    return only_total(made) if granularity == "total" else made


def parts(
    names: Mapping[str, Sequence[str]], granularity: str, dims: Mapping[str, ObjectiveConfig]
) -> dict[str, list[str]]:
    """Objective -> what was taken out of it, from level -> names; in order, each part after its whole.

    Raises ValueError, with the nearest name, for an entry of `dims` that no level has.
    """
    top = "dimension" if granularity == "total" else granularity
    levels = [level for level in FINER[FINER.index(top) :] if level in names]
    found: dict[str, list[str]] = {name: [] for name in names[top]}
    unmet = [entry for entry in dims if not any(_fits(entry, name) for name in found)]
    for level in levels[1:]:
        finer = [name for name in names[level] if any(_fits(entry, name) for entry in unmet)]
        unmet = [entry for entry in unmet if not any(_fits(entry, name) for name in finer)]
        for name in finer:
            whole = next(above for above in _path(name)[1:] if above in found)
            found[whole].append(name)
            found[name] = []
        gone = [
            whole
            for whole, taken in found.items()
            if taken and set(taken) == {name for name in names[level] if whole in _path(name)}
        ]
        found = {name: taken for name, taken in found.items() if name not in gone}
    if unmet:
        every = [name for level in FINER if level in names for name in names[level]]
        raise ValueError(_unknown(unmet[0], every, names[top]))
    order = [name for top_name in names[top] for name in found if top_name in _path(name)]
    return {name: found[name] for name in order}


def settings_by_name(names: Sequence[str], dims: Mapping[str, ObjectiveConfig]) -> list[ObjectiveConfig]:
    """The settings of each of `names`, which may be paths such as `quality.clarity`.

    An entry of `dims` fits the name itself, its last part, and what its pattern matches (`quality.*`), and
    everything below what it fits; one for the name itself goes before a pattern or an ancestor's, then the
    longer entry before the shorter. Raises ValueError, with the nearest name, for an entry that fits none.
    """
    fitting = [_entries_for(name, dims) for name in names]
    for entry in dims:
        if not any(entry in entries for entries in fitting):
            raise ValueError(_unknown(entry, names, names))
    return [dims[entries[0]] if entries else ObjectiveConfig() for entries in fitting]


def in_words(setting: ObjectiveConfig) -> str:
    """A role with what is set beside it: improve, weight 2, margin 0.5."""
    found = [setting.role]
    found += [f"weight {setting.weight:g}"] if setting.weight != 1 and setting.role == "improve" else []
    found += [f"margin {setting.margin:g}"] if setting.margin else []
    found += [f"tolerance {setting.tolerance:g}"] if setting.tolerance is not None else []
    return ", ".join(found)


def general_slack(names: Sequence[str], dims: Mapping[str, ObjectiveConfig]) -> list[bool]:
    """For each of `names` whether it follows the general tolerance: it has no slack or margin itself."""
    found = [next((dims[entry] for entry in _entries_for(name, dims)), ObjectiveConfig()) for name in names]
    return [setting.tolerance is None and setting.margin == 0 for setting in found]


def _entries_for(name: str, dims: Mapping[str, ObjectiveConfig]) -> list[str]:
    """The entries of `dims` that fit `name`, the one that counts first."""
    exact = [entry for entry in dims if entry in (name, name.rpartition(".")[2])]
    broad = [entry for entry in dims if entry not in exact and _fits(entry, name)]
    return sorted(exact, key=len, reverse=True) + sorted(broad, key=len, reverse=True)


def _fits(entry: str, name: str) -> bool:
    """Whether an entry of `dims` says something about `name`: itself or what it is part of."""
    return any(entry in (at, at.rpartition(".")[2]) or fnmatchcase(at, entry) for at in _path(name))


def _path(name: str) -> list[str]:
    """The name and all that it is part of, nearest first: a.b.c, a.b, a."""
    steps = name.split(".")
    return [".".join(steps[:depth]) for depth in range(len(steps), 0, -1)]


def _unknown(entry: str, every: Sequence[str], shown: Sequence[str]) -> str:
    """One line about an entry that fits none of `every`."""

    def likeness(name: str) -> float:
        return max(SequenceMatcher(None, entry, text).ratio() for text in (name, name.rpartition(".")[2]))

    return (
        f"objectives.dims.{entry}: there is no such objective; the nearest is {max(every, key=likeness)}, "
        f"all are {', '.join(shown)}" + (" and their parts" if len(every) > len(shown) else "")
    )


def by_prompt(prompts: Tensor, candidates: Tensor, scores: Tensor) -> Tensor:
    """[P, N, K] from M rows: indices `prompts` [M] and `candidates` [M], `scores` [M, K]; NaN elsewhere."""
    import torch

    shape = (int(prompts.max()) + 1, int(candidates.max()) + 1, scores.shape[-1])
    table = torch.full(shape, math.nan, dtype=torch.float64)
    table[prompts, candidates] = scores.double()
    return table


def _least_difference(setting: ObjectiveConfig, tolerance: float) -> float:
    if setting.role == "improve" and setting.margin > 0:
        return setting.margin
    return -(tolerance if setting.tolerance is None else setting.tolerance)
