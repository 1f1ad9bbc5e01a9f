"""Packed or batched: which way questions follow a shared prefix is faster here.

Packed, the questions of a picture are one sequence under a block mask, and attention scores every pair of
its tokens. Batched, each has a row of its own, padded to the longest, and the prefix's keys and values are
repeated for every row, a layer at a time. A long prefix favours the first, many questions behind a short one
the second.

Shapes: B pictures, Q questions, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from rewards.judges.packing import Packed, pack

LAYOUTS = ("packed", "batched")
# What repeating a token's keys and values costs, and what a token costs in a layer's weights for each unit of
# the width, both counted in pairs of tokens that attention scores: fitted to benchmarks/layouts.py on a CPU.
_REPEATED, _WEIGHTS = 60, 8

Rows = Sequence[Sequence[Sequence[int]]]  # [b][q]: token ids of a question


class Layouts:
    """Runs questions in the faster layout.

    On the CPU the cost is counted, so that equal runs choose alike and answers are equal to the bit; on any
    other device both layouts are timed, once for each length of the prefix and number of questions. `fixed`:
    one of `LAYOUTS` in place of the choice. hidden: width of the decoder.
    """

    def __init__(self, hidden: int, fixed: str | None = None):
        self.hidden = hidden
        self.fixed = fixed
        self.timed: dict[tuple[int, int, int], str] = {}

    def run(
        self,
        questions: Rows,
        prefix: int,
        device: torch.device,
        ask: Callable[[Packed], Tensor],
        clock: Callable[[], float] = perf_counter,
    ) -> Tensor:
        """What `ask` returns of packed rows, [R, questions a row, ...], as [B, Q, ...].

        questions: those of B pictures, Q each, behind `prefix` tokens; `ask` sees B rows or, picture by
        picture, B * Q.
        """

        def asked(layout: str) -> Tensor:
            rows = questions if layout == "packed" else [[tokens] for row in questions for tokens in row]
            return ask(pack(rows, device)).unflatten(0, (len(questions), -1)).flatten(1, 2)

        shape = (len(questions), prefix, len(questions[0]))
        if self.fixed:
            layout = self.fixed
        elif device.type == "cpu":
            layout = counted(questions, prefix, self.hidden)
        else:
            layout = self.timed.get(shape) or self._time(asked, clock)
            self.timed[shape] = layout
        return asked(layout)

    def _time(self, asked: Callable[[str], Tensor], clock: Callable[[], float]) -> str:
        """The layout that takes less time, its first run not counted."""
        seconds = dict.fromkeys(LAYOUTS, math.inf)
        for layout in LAYOUTS:
            try:
                asked(layout)
                wait_for_device()
                start = clock()
                asked(layout)
                wait_for_device()
                seconds[layout] = clock() - start
            except torch.OutOfMemoryError:  # what fits is left; where nothing does, the next run says so
                continue
        return min(LAYOUTS, key=seconds.get)


def counted(questions: Rows, prefix: int, hidden: int) -> str:
    """The layout with less work beyond what both have, in pairs of tokens that attention scores."""
    widths = [max(map(len, column)) for column in zip(*questions, strict=True)]
    packed = sum(widths) ** 2  # pairs of which most are masked
    longest = max(len(tokens) for row in questions for tokens in row)
    padding = len(widths) * longest - sum(widths)
    batched = len(widths) * (longest**2 + _REPEATED * prefix) + padding * _WEIGHTS * hidden
    return "packed" if packed <= batched else "batched"


def wait_for_device() -> None:
    """Until the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
