"""How often a weight's 95 % bootstrap interval holds the true weight, over repeated synthetic preferences.

    PYTHONPATH=. python benchmarks/weight_coverage.py [--repetitions 200] [--pairs 1500]

Twelve questions: eight with weights from 1.2 down to 0.1, two without influence, and two confounds, a noisy
copy of the strongest question and a noisy opposite of the second.
"""

import argparse

import numpy as np
from scipy.special import expit

from rewards import regression

TRUE = np.array([1.2, 0.8, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.0, 0.0, 0.0, 0.0])


def preferences(pairs: int, rng) -> np.ndarray:
    """Differences [M, 12], preferred minus other."""
    answers = np.sign(rng.normal(size=(2, pairs, 12)) + 0.6 * rng.normal(size=(2, pairs, 1)))
    flips = np.where(rng.random((2, pairs, 2)) < 0.2, -1, 1)
    answers[..., 10] = answers[..., 0] * flips[..., 0]
    answers[..., 11] = -answers[..., 1] * flips[..., 1]
    differences = answers[0] - answers[1]
    first = rng.random(pairs) < expit(differences @ TRUE)
    return np.where(first[:, None], differences, -differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=1500)
    args = parser.parse_args()
    for solver in regression.SOLVERS:
        covered, weights = np.zeros(len(TRUE)), []
        for seed in range(args.repetitions):
            rng = np.random.default_rng(seed)
            differences = preferences(args.pairs, rng)
            fit = regression.fit(differences, solver).weights
            draws = regression.bootstrap(differences, fit, np.arange(args.pairs), rng, solver=solver)
            low, high = np.percentile(draws, [2.5, 97.5], axis=0)
            covered += (low <= TRUE) & (TRUE <= high)
            weights.append(fit)
        print(f"{solver}: {args.repetitions} repetitions of {args.pairs:,} pairs")
        for true, share, mean in zip(TRUE, covered / args.repetitions, np.mean(weights, axis=0), strict=True):
            print(f"  true {true:.2f}  mean {mean:.3f}  covered {share:.1%}")
        print(f"  all true weights above zero: {(covered / args.repetitions)[TRUE > 0].mean():.1%}")


if __name__ == "__main__":
    main()
