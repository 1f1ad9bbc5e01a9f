"""Time of learning 60 weights from 44,000 preferences, as many as VisionReward has for images.

    PYTHONPATH=. python benchmarks/fit_weights.py [--pairs 44000] [--questions 60]

Prints the seconds of each solver and of the whole report: both solvers, 400 bootstrap resamples, 5-fold
cross-validation, regularisation path and learning curve.
"""

import argparse
from time import perf_counter

import numpy as np
from scipy.special import expit

from rewards import regression
from rewards.weights import learn_weights


def preferences(pairs: int, questions: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """True weights [Q], half of them zero, and differences [M, Q] of correlated answers of 1 and -1."""
    true = np.where(rng.random(questions) < 0.5, rng.exponential(0.3, questions), 0.0)
    common = 0.6 * rng.normal(size=(2, pairs, 1))
    answers = np.sign(rng.normal(size=(2, pairs, questions)) + common + rng.normal(size=questions))
    differences = answers[0] - answers[1]
    first = rng.random(pairs) < expit(differences @ true)
    return true, np.where(first[:, None], differences, -differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=44_000)
    parser.add_argument("--questions", type=int, default=60)
    args = parser.parse_args()
    true, differences = preferences(args.pairs, args.questions, np.random.default_rng(0))
    print(f"{args.pairs:,} pairs, {args.questions} questions, {(true > 0).sum()} with weight")
    for solver in regression.SOLVERS:
        start = perf_counter()
        fit = regression.fit(differences, solver)
        seconds = perf_counter() - start
        print(f"{solver:11} {seconds:6.2f} s  loss {fit.objective:.6f}  {(fit.weights > 0).sum()} questions")
    start = perf_counter()
    report = learn_weights(differences, [f"q{index}" for index in range(args.questions)])
    print(f"{'report':11} {perf_counter() - start:6.2f} s")
    inside = [
        estimate.low <= value <= estimate.high for estimate, value in zip(report.weights, true, strict=True)
    ]
    print(f"true weights inside their 95 % interval: {np.mean(inside):.1%}")
    print(f"accuracy, cross-validated: {report.solvers['exact'].accuracy.value:.1%}")


if __name__ == "__main__":
    main()
