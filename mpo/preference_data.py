"""Preference pairs over stored latents and conditioning, and the draws that a training run makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from generators.base import Conditioning
from generators.schedules import Schedule
from mpo.store import stable_seed


class Rows(Protocol):
    """Latents by row: a tensor, or a reader of shards that holds few of them in memory."""

    def __getitem__(self, row: int) -> Tensor: ...


class ConditioningRows(Protocol):
    """Conditioning by row: a `Conditioning`, or a reader of shards."""

    def rows(self, index: Sequence[int]) -> Conditioning: ...


@dataclass(frozen=True)
class PreferencePairs:
    """n pairs over stored samples. Pair i prefers `latents[winner[i]]` to `latents[loser[i]]`, both of the
    prompt whose conditioning is row `prompt[i]`."""

    latents: Rows
    conditioning: ConditioningRows
    winner: Sequence[int]
    loser: Sequence[int]
    prompt: Sequence[int]
    names: Sequence[str]  # of the pairs, all different: they seed the noise and stand in messages
    gap: Sequence[float] | None = None  # by how much the reward prefers the winner; None: not known
    folder: str = ""  # where the files lie that the names speak of, for messages

    def __len__(self) -> int:
        return len(self.winner)


class PairDraws(Dataset):
    """Every draw of a training run in the order in which it is used: `length` of them, epoch after epoch.

    Each epoch is a permutation of all pairs from the seed and the epoch's number.
    """

    def __init__(self, pairs: PreferencePairs, schedule: Schedule, seed: int, length: int):
        if not len(pairs):
            raise ValueError("train: no pair to train on")
        self.pairs, self.schedule, self.seed, self.length = pairs, schedule, seed, length
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """The draws `indices` as a batch of B: `pair` [B], `timestep` [B], `noise` [B, ...], `latents`
        [B, 2, ...] winner first, `conditioning` [B, ...] by name, and `gap` [B] if known."""
        visits = [divmod(index, len(self.pairs)) for index in indices]
        drawn = [self._order(epoch)[place] for epoch, place in visits]
        rows = [int(side[pair]) for pair in drawn for side in (self.pairs.winner, self.pairs.loser)]
        latents = torch.stack([self.pairs.latents[row] for row in rows]).float().unflatten(0, (-1, 2))
        generators = [
            torch.Generator().manual_seed(stable_seed(self.seed, self.pairs.names[pair], epoch))
            for pair, (epoch, _) in zip(drawn, visits, strict=True)
        ]
        batch = {
            "pair": torch.tensor(drawn),
            "timestep": torch.cat([self.schedule.sample_timesteps(generator) for generator in generators]),
            "noise": torch.stack([torch.randn(latents.shape[2:], generator=g) for g in generators]),
            "latents": latents,
            "conditioning": self.pairs.conditioning.rows([int(self.pairs.prompt[i]) for i in drawn]).tensors,
        }
        if self.pairs.gap is not None:
            batch["gap"] = torch.tensor([float(self.pairs.gap[pair]) for pair in drawn])
        return batch

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "epoch", epoch))
        return torch.randperm(len(self.pairs), generator=generator).tolist()
