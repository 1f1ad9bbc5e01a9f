"""What the decoder is given: token types, positions, prompts, and the prefix that questions share.

A sequence is bos, pictures (token type 1: a begin, patches, an end) and text (type 0). Shapes: B batch, L
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """What comes before the text, alike for all questions about one picture or clip. Each [L]."""

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
        """Position of the first token of the text."""
        return int(self.position_ids[-1]) + 1
