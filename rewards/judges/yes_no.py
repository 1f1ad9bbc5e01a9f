"""Yes and no in a vocabulary, and their probabilities at the first answer position."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewards.judges.base import Answers

# how far a log-probability of several questions in one pass may be from that of a plain forward pass
EXACT = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.05}


@dataclass(frozen=True)
class Spellings:
    """Token ids that read yes, and those that read no: any case, with or without a space before."""

    yes: tuple[int, ...]
    no: tuple[int, ...]


def spellings(tokenizer, judge: str) -> Spellings:
    """All single-token spellings of yes and no in a tokenizer's vocabulary; ValueError where one has none."""
    found: dict[str, list[int]] = {"yes": [], "no": []}
    for token, index in tokenizer.get_vocab().items():
        if len(token) <= 6 and ("yes" in token.lower() or "no" in token.lower()):
            word = tokenizer.convert_tokens_to_string([token]).strip().lower()
            if word in found:
                found[word].append(index)
    for word, ids in found.items():
        if not ids:
            raise ValueError(
                f"{judge}: its tokenizer has no single token for {word!r}, so it cannot be a judge"
            )
    return Spellings(tuple(sorted(found["yes"])), tuple(sorted(found["no"])))


def read_yes_no(logits: Tensor, words: Spellings) -> tuple[Tensor, Tensor]:
    """Log-probabilities of yes and of no, each [...], from next-token logits [..., V]; computed in
    float32.
    """
    log_prob = logits.float().log_softmax(dim=-1)
    return log_prob[..., list(words.yes)].logsumexp(-1), log_prob[..., list(words.no)].logsumexp(-1)


def to_answers(yes: Tensor, no: Tensor) -> Answers:
    """Answers of one item from its log-probabilities [Q]."""
    return Answers(yes.detach().float().cpu(), no.detach().float().cpu())


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Hash of a model's parameters and buffers: their names, types, shapes and every byte.

    Each tensor is reduced on its own device to a weighted sum of its bytes, eight at a time, modulo 2**64;
    the order of elements counts. Independent of how files are sharded or where they lie.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        checksum = 0
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        for number, chunk in enumerate(flat.split(1 << 26)):
            words = nn.functional.pad(chunk, (0, -len(chunk) % 8)).view(torch.int64)
            factor = torch.arange(len(words), device=words.device, dtype=torch.int64) * 2 + 1
            factor *= 0x5851F42D4C957F2D  # spreads neighbouring factors over all 64 bits
            part = ((words ^ (words >> 29)) * factor).sum().item()
            checksum = (checksum * 0x9E3779B97F4A7C15 + part + number) % 2**64
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {checksum}\n".encode())
    return digest.hexdigest()
