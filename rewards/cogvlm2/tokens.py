"""What the decoder is given: token types, positions, prompts, and questions packed behind a shared prefix.

A sequence is bos, pictures (token type 1: a begin, patches, an end) and text (type 0). Shapes: B batch, L
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CUES = {"base": None, "vqa": "Short answer:", "chat": "Answer:"}  # template -> what asks for an answer


def positions(token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions [B, L] from token types: every token counts, except that all patches of a picture share one.

    The begin and the end of a run of image tokens count like text. Padding (mask 0) repeats the position
    before.
    """
    real = torch.ones_like(token_type_ids) if attention_mask is None else attention_mask.long()
    image = (token_type_ids == 1) & (real == 1)
    patch = image.clone()
    patch[:, 0] = patch[:, -1] = False
    patch[:, 1:] &= image[:, :-1]
    patch[:, :-1] &= image[:, 1:]
    again = torch.zeros_like(patch)
    again[:, 1:] = patch[:, 1:] & patch[:, :-1]
    return ((real * ~again).cumsum(dim=1) - 1).clamp(min=0)


def seen_by_expert(token_type_ids: Tensor) -> Tensor | None:
    """Tokens [B, L] for the vision expert: image tokens before an image token. None where there is none."""
    expert = torch.zeros_like(token_type_ids, dtype=torch.bool)
    expert[:, :-1] = (token_type_ids[:, :-1] == 1) & (token_type_ids[:, 1:] == 1)
    return expert if expert.any() else None


def prompt(query: str, template: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """The text after the pictures. `history`: earlier queries and answers, which template base ignores."""
    cue = CUES[template]
    if cue is None:
        return query
    turns = "".join(f"Question: {asked} {cue} {answer}\n" for asked, answer in history)
    return f"{turns}Question: {query} {cue}"


@dataclass(frozen=True)
class Prefix:
    """What comes before the text, alike for all questions about one picture or clip. Each tensor is [L]."""

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]], tokens: int, bos: int, placeholder: int) -> Prefix:
        """bos, then per picture `tokens` placeholders and the ids of its caption."""
        ids, types = [bos], [0]
        for caption in captions:
            ids += [placeholder] * tokens + list(caption)
            types += [1] * tokens + [0] * len(caption)
        token_type_ids = torch.tensor(types)
        return cls(torch.tensor(ids), token_type_ids, positions(token_type_ids[None])[0])

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def next_position(self) -> int:
        return int(self.position_ids[-1]) + 1


@dataclass(frozen=True)
class Packed:
    """For each of B cached prefixes several texts in one row, none of which sees another.

    `input_ids`, `position_ids` [B, L]: every text continues the positions of the prefix. `attention_mask`
    [B, 1, L, prefix + L]: true where a token may look. `last`: per row where each of its texts ends.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    last: list[Tensor]

    @classmethod
    def of(cls, rows: Sequence[Sequence[Sequence[int]]], prefix: Prefix, device: torch.device) -> Packed:
        """`rows[b][q]`: the ids of text q behind prefix b. Shorter rows are filled up at the end."""
        start = prefix.next_position
        ids = [[token for text in row for token in text] for row in rows]
        place = [[start + step for text in row for step in range(len(text))] for row in rows]
        owner = [[number for number, text in enumerate(row) for _ in text] for row in rows]
        input_ids, position_ids, owner = (
            pad_sequence([torch.tensor(row, dtype=torch.long) for row in column], True, fill).to(device)
            for column, fill in ((ids, 0), (place, 0), (owner, -1))
        )
        own = (owner.unsqueeze(2) == owner.unsqueeze(1)).tril()
        mask = torch.cat([own.new_ones(*own.shape[:2], len(prefix)), own], dim=2)
        last = [torch.tensor([len(text) for text in row], dtype=torch.long).cumsum(0) - 1 for row in rows]
        return cls(input_ids, position_ids, mask.unsqueeze(1), last)
