"""Dominance filtering at the size of a large run, against a plain double loop on a sample of its prompts.

    PYTHONPATH=. python benchmarks/dominance.py [--prompts 100000] [--candidates 8] [--objectives 9]
        [--threads 1]

Prints the seconds of the filter (best of three), its time per prompt at a tenth of the prompts and at all of
them, and the ratio to the double loop, whose pairs must be the same.
"""

import argparse
import time
from collections.abc import Callable

import torch

from mpo.dominance import dominating_pairs
from mpo.objectives import ROUNDING, Objectives, objectives

MARGIN = 0.1
SAMPLE = 500  # prompts for the double loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--objectives", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    level = random_objectives(args.prompts, args.candidates, args.objectives)
    seconds = best_of_three(lambda: dominating_pairs(level, MARGIN))
    tenth = level[: args.prompts // 10]
    tenth_seconds = best_of_three(lambda: dominating_pairs(tenth, MARGIN))
    sample = level[:SAMPLE]
    size = len(sample.total)
    start = time.perf_counter()
    expected = double_loop(sample, MARGIN)
    loop_seconds = time.perf_counter() - start
    pairs = dominating_pairs(sample, MARGIN)
    found = list(zip(pairs.prompt.tolist(), pairs.winner.tolist(), pairs.loser.tolist(), strict=True))
    if found != expected:
        raise SystemExit(
            f"{size} prompts: {len(found)} pairs by the filter, {len(expected)} by the double loop"
        )

    print(f"{args.prompts:,} prompts x {args.candidates} candidates x {args.objectives} objectives, ", end="")
    print(f"threads: {args.threads}")
    print(f"filter: {seconds:.3f} s, {len(dominating_pairs(level, MARGIN)):,} pairs")
    print(f"per prompt: {1e6 * seconds / args.prompts:.2f} us; at a tenth of the prompts ", end="")
    print(f"{1e6 * tenth_seconds / len(tenth.total):.2f} us")
    ratio = (loop_seconds / size) / (seconds / args.prompts)
    print(
        f"double loop on {size} prompts: the same {len(expected)} pairs; per prompt {ratio:,.0f} times slower"
    )


def random_objectives(prompts: int, candidates: int, count: int) -> Objectives:
    """Correlated scores on a grid of tenths, so that ties occur; one candidate in fifty has none."""
    generator = torch.Generator().manual_seed(0)
    quality = torch.randn(prompts, candidates, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(prompts, candidates, count, generator=generator, dtype=torch.float64)
    scores = (0.5 * quality + 0.5 * noise).mul(10).round().div(10)
    scores[torch.rand(prompts, candidates, generator=generator) < 0.02] = torch.nan
    return objectives(scores, [f"dimension {k}" for k in range(count)], {})


def double_loop(level: Objectives, margin: float) -> list[tuple[int, int, int]]:
    """The definition as it stands: every pair of candidates, one objective after the other."""
    values, totals, least = level.values.tolist(), level.total.tolist(), level.least.tolist()
    found = []
    for p, (prompt, total) in enumerate(zip(values, totals, strict=True)):
        for i, winner in enumerate(prompt):
            for j, loser in enumerate(prompt):
                above = all(a - b >= c - ROUNDING for a, b, c in zip(winner, loser, least, strict=True))
                if above and total[i] - total[j] >= margin - ROUNDING:
                    found.append((p, i, j))
    return found


def best_of_three(work: Callable[[], object]) -> float:
    """Seconds of the quickest of three goes."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
