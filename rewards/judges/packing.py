"""Many questions in one pass, over one shared prefix.

The keys and values of a picture are computed once; its questions then follow, each seeing the prefix and
itself, with positions that restart at the end of the prefix: in a single sequence (packed), or a row a
question (batched). Either way the result is that of asking one at a time.

Shapes: B pictures, Q questions, P prefix tokens, R rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(frozen=True)
class Packed:
    """Questions side by side in each of R rows. Question q takes the same columns in every row, padded on the
    right.
    """

    input_ids: Tensor  # [R, L]
    offsets: Tensor  # [L] place of each token within its question, from 0
    block: Tensor  # [L] which question a token belongs to
    ends: Tensor  # [R, questions a row] column of each question's last token, where its answer is read

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
    """Token ids `questions[r][q]` of R rows, each with as many questions, in one sequence a row."""
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


class PrefixCache(Cache):
    """Keys and values of B prefixes. The first pass fills it; later ones see it and leave nothing behind.

    A later pass has B rows, or equally many rows for each prefix, side by side. Then a layer's prefix is
    repeated for its own attention alone: no copy for each question is held.
    """

    def __init__(self):
        super().__init__(layer_class_to_replicate=_PrefixLayer)


class _PrefixLayer(DynamicLayer):
    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            return super().update(key_states, value_states)
        return _behind(self.keys, key_states), _behind(self.values, value_states)


def _behind(prefix: Tensor, states: Tensor) -> Tensor:
    """[R, A, P + L, D] of prefixes [B, A, P, D] and what follows them, [R, A, L, D]; B divides R."""
    length = prefix.shape[-2]
    joined = states.new_empty(*states.shape[:-2], length + states.shape[-2], states.shape[-1])
    joined.unflatten(0, (len(prefix), -1))[..., :length, :] = prefix[:, None]
    joined[..., length:, :] = states
    return joined
