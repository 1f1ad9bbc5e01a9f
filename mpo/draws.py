"""Pseudo-random numbers that depend on what they are for, not on what else is drawn, or when. Pure."""

from __future__ import annotations

import torch
from torch import Tensor


def draws(seed: int, *keys: Tensor) -> Tensor:
    """int64 of the shape of the int64 `keys`, spread over all 64 bits: one for each seed and tuple of keys.

    The finaliser of splitmix64 (Steele, Lea and Flood 2014) is applied to one key after the other.
    """
    state = torch.full_like(keys[0], seed)
    for key in keys:
        state = _mix(state + key * _signed(0x9E3779B97F4A7C15) + 1)
    return state


def _mix(state: Tensor) -> Tensor:
    """int64 arithmetic wraps, as is wanted; the shifts must bring in zeros, as those of unsigned numbers."""
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
