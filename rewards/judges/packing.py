"""Many questions in one sequence, over one shared prefix.

The keys and values of a picture are computed once; its questions then follow in a single sequence, each
seeing the prefix and itself, with positions that restart at the end of the prefix. The result is that of
asking one at a time.

Shapes: B pictures, Q questions, P prefix tokens, L packed tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Packed:
    """Questions of B pictures side by side. Question q takes the same columns in every row, padded on the
    right.
    """

    input_ids: Tensor  # [B, L]
    offsets: Tensor  # [L] place of each token within its question, from 0
    block: Tensor  # [L] which question a token belongs to
    ends: Tensor  # [B, Q] column of each question's last token, where its answer is read

    def mask(self, prefix: int, dtype: torch.dtype) -> Tensor:
        """Additive attention mask [1, 1, L, P + L]: the whole prefix, and the same question so far.

        Padding comes after a question's last token, so no token that is read can see it.
        """
        same = self.block[:, None] == self.block[None, :]
        seen = same & (self.offsets[:, None] >= self.offsets[None, :])
        seen = torch.cat([seen.new_ones(len(self.block), prefix), seen], dim=1)
        lowest = torch.finfo(dtype).min
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, lowest)[None, None]


def pack(questions: Sequence[Sequence[Sequence[int]]], device: torch.device | str = "cpu") -> Packed:
    """Token ids `questions[b][q]` of B pictures, each with Q questions, in one sequence a picture."""
    widths = [max(len(row[q]) for row in questions) for q in range(len(questions[0]))]
    starts = [sum(widths[:q]) for q in range(len(widths))]
    ids = torch.zeros(len(questions), sum(widths), dtype=torch.long)
    for row, asked in enumerate(questions):
        for start, tokens in zip(starts, asked, strict=True):
            ids[row, start : start + len(tokens)] = torch.tensor(tokens)
    ends = [
        [start + len(tokens) - 1 for start, tokens in zip(starts, asked, strict=True)] for asked in questions
    ]
    return Packed(
        ids.to(device),
        torch.cat([torch.arange(width) for width in widths]).to(device),
        torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)).to(device),
        torch.tensor(ends, device=device),
    )


def split_packs(widths: Sequence[int], prefix: int) -> Iterator[slice]:
    """Slices of the questions that go into one sequence each.

    A packed sequence of L tokens scores L * (P + L) pairs, of which only a question's own are needed beside
    the prefix; L is kept to about P, so that at most half is waste, and above 512, so that passes stay few.
    """
    limit = max(512, prefix)
    start, total = 0, 0
    for stop, width in enumerate(widths):
        if total and total + width > limit:
            yield slice(start, stop)
            start, total = stop, 0
        total += width
    yield slice(start, len(widths))


def rewind(cache: DynamicCache, length: int) -> None:
    """Drops everything after the first `length` tokens, so that the prefix serves the next sequence."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
