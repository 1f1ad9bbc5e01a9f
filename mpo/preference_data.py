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

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`latents` [2, ...] winner first, `noise` [...], `timestep` [], `conditioning` by name, `pair`, and
        `gap` if known."""
        epoch, place = divmod(index, len(self.pairs))
        pair = self._order(epoch)[place]
        winner, loser, prompt = (
            int(rows[pair]) for rows in (self.pairs.winner, self.pairs.loser, self.pairs.prompt)
        )
        latents = torch.stack([self.pairs.latents[winner], self.pairs.latents[loser]]).float()
        conditioning = self.pairs.conditioning.rows([prompt]).tensors
        generator = torch.Generator().manual_seed(stable_seed(self.seed, self.pairs.names[pair], epoch))
        gap = {} if self.pairs.gap is None else {"gap": float(self.pairs.gap[pair])}
        return gap | {
            "timestep": self.schedule.sample_timesteps(generator)[0],
            "noise": torch.randn(latents[0].shape, generator=generator),
            "latents": latents,
            "conditioning": {name: tensor[0] for name, tensor in conditioning.items()},
            "pair": pair,
        }

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "epoch", epoch))
        return torch.randperm(len(self.pairs), generator=generator).tolist()
