"""Commands that make and measure a reward: weights, accuracy on preferences, checklists of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mpo.cli_rewards import Cache, Checklist, Judge, Reward, Settings, reward_settings, warnings_in_a_line
from mpo.config import ConfigError
from mpo.store import write_bytes, write_json

Data = Annotated[
    Path, typer.Argument(help="Preferences: .parquet, .jsonl, .json, or a folder of .parquet files.")
]
Media = Annotated[
    Path | None, typer.Option(help="Folder that relative paths start from; default: where DATA lies.")
]
Answers = Annotated[
    list[str] | None,
    typer.Option("--answer", metavar="SPELLING=1|2|tie", help="What a spelling in DATA means; repeatable."),
]
Missing = Annotated[float, typer.Option(help="Share of pairs that may be left out for want of an item.")]


def register(app: typer.Typer, checklist: typer.Typer) -> None:
    """Add the commands to `app`, and those about checklists to the group `checklist`."""
    app.command("fit-weights")(fit_weights)
    app.command("bench-reward")(bench_reward)
    app.command("train-judge")(train_judge)
    checklist.command("new")(new)
    checklist.command("check")(check)


def fit_weights(
    data: Data,
    out: Annotated[Path, typer.Option(help="Checklist to write; the report goes beside it as .fit.json.")],
    checklist: Checklist = None,
    reward: Reward = None,
    judge: Judge = None,
    settings: Settings = None,
    cache: Cache = None,
    solver: Annotated[str, typer.Option(help="exact | algorithm1 (the paper's).")] = "exact",
    ridge: Annotated[float, typer.Option(help="Strength of the normal prior; 0 is none.")] = 1.0,
    l1: Annotated[float, typer.Option(help="Strength of the L1 penalty, as in the path.")] = 0.0,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of prompts.")] = 400,
    seed: int = 0,
    media: Media = None,
    answer: Answers = None,
    allow_missing: Missing = 0.05,
) -> None:
    """Learn a checklist's weights from preferences; the file written scores at once.

    \b
    mpo fit-weights pairs.jsonl --reward configs/rewards/quickstart.yaml --out learned.yaml
    mpo fit-weights pairs.parquet --media clips --judge FOLDER --checklist mine.yaml --out learned.yaml
    """
    from mpo.learn_tables import weight_tables
    from rewards.build import load_reward
    from rewards.preferences import one_side, read_preferences
    from rewards.regression import SOLVERS, Penalty
    from rewards.scoring import answer_differences, learnable, score_pairs
    from rewards.weights import learn_weights

    if solver not in SOLVERS:
        raise ConfigError(f"--solver {solver}: must be one of {', '.join(SOLVERS)}")
    _check_folder(out)
    penalty = Penalty(ridge, l1)
    pairs = read_preferences(data, media, _meanings(answer), allow_missing)
    print(pairs.reading)
    if not pairs.verdicts.any():
        raise ValueError(f"{data}: all {len(pairs)} pairs are ties, so no weight can be learned")
    scorer = load_reward(reward_settings(reward, judge, checklist, settings, cache))
    with warnings_in_a_line():
        cards = score_pairs(scorer, pairs, allow_missing)
    differences, kept = answer_differences(cards, pairs, scorer.checklist)
    names = learnable(scorer.checklist)
    report = learn_weights(differences, names, pairs.groups[kept], solver, penalty, resamples, seed=seed)
    weights = {name: estimate.value for name, estimate in zip(names, report.weights, strict=True)}
    learned = replace(scorer.checklist.with_weights(weights), name=out.stem)
    learned.to_yaml(out)
    write_json(out.with_suffix(".fit.json"), report.to_dict())
    weight_tables(report)
    if note := one_side(pairs.verdicts):
        print(f"note: {note}")
    if len(kept) < len(pairs):
        print(f"{len(pairs) - len(kept)} of {len(pairs)} pairs left out: ties, or an item without a score")
    print(f"{out}: {learned.name}, {len(learned.columns)} of {len(names)} columns carry weight")


def bench_reward(
    data: Data,
    reward: Annotated[list[Path], typer.Option(help="YAML file of a reward or baseline; repeatable.")],
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
    settings: Settings = None,
    cache: Cache = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of prompts.")] = 1000,
    seed: int = 0,
    media: Media = None,
    answer: Answers = None,
    allow_missing: Missing = 0.05,
) -> None:
    """Measure how well rewards agree with people: tau (with ties) and diff (without), side by side.

    \b
    mpo bench-reward pairs.jsonl --reward configs/rewards/quickstart.yaml
    mpo bench-reward test.parquet --media clips --reward visionreward.yaml --reward clipscore.yaml

    A baseline is a YAML file with `kind: clipscore` or `kind: pickscore` and `path`, a folder or hub id.
    """
    from mpo.learn_tables import agreement_table
    from rewards.benchmark import benchmark, check_verdicts
    from rewards.preferences import read_preferences
    from rewards.scoring import level_scores, score_pairs
    from rewards.settings import read_yaml

    names = [path.stem for path in reward]
    if len(set(names)) < len(names):
        raise ConfigError(f"--reward: {', '.join(names)}: files must differ in name")
    for path in reward:
        read_yaml(path)  # before the first of them has scored everything
    if out is not None:
        _check_folder(out)
    pairs = read_preferences(data, media, _meanings(answer), allow_missing)
    check_verdicts(pairs.verdicts)
    print(pairs.reading)
    with warnings_in_a_line():
        scores = {
            name: level_scores(score_pairs(_reward(path, settings, cache), pairs, allow_missing))
            for name, path in zip(names, reward, strict=True)
        }
    report = benchmark(scores, pairs.verdicts, pairs.groups, resamples, seed)
    if out is not None:
        write_json(out, {"data": str(data), "verdicts": pairs.spellings, **report.to_dict()})
    agreement_table(report)


def train_judge(
    config: Annotated[Path, typer.Argument(help="YAML file; settings in rewards/finetune_settings.py.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the file's.")
    ] = None,
) -> None:
    """Fine-tune a judge on annotations; started again, a training that was cut short goes on.

    \b
    mpo train-judge configs/judges/mine.yaml
    mpo train-judge configs/judges/mine.yaml mode=full learning_rate=1e-6

    Keeps the judge with the best balanced accuracy on held-out items, and writes it as an ordinary model
    folder.
    """
    from mpo.learn_tables import judge_table
    from rewards.finetune_settings import read_training

    settings = read_training(config, overrides or ())
    from rewards import finetune

    judge_table(finetune.train_judge(settings))
    print(f"{settings.out}: judge written; evaluation.json holds the accuracies before and after")


def new(
    out: Annotated[Path, typer.Argument(help="File to write.")],
    template: Annotated[str, typer.Option(help="image | video.")] = "image",
) -> None:
    """Write a small commented checklist to start from.

    \b
    mpo checklist new mine.yaml
    mpo checklist new clips.yaml --template video
    """
    from rewards.templates import TEMPLATES
    from rewards.templates import template as text

    if template not in TEMPLATES:
        raise ConfigError(f"--template {template}: must be one of {', '.join(TEMPLATES)}")
    if out.exists():
        raise FileExistsError(f"{out}: exists already; choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, text(template, out.stem).encode())
    print(f"{out}: {template} checklist; edit it, then run: mpo checklist check {out}")


def check(
    checklist: Annotated[Path, typer.Argument(help="YAML file of a checklist.")],
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Scored sample with a column p_yes: a run's scores-*.parquet, or scorecards.jsonl."
        ),
    ] = None,
) -> None:
    """Look a checklist over: wording, doubled and unused questions, and its answers on a sample.

    \b
    mpo checklist check mine.yaml
    mpo checklist check mine.yaml --scores runs/store/score-1a2b/scores-00000.parquet

    Exits with 1 when something was found.
    """
    from rewards.build import load_checklist
    from rewards.review import review, review_answers

    loaded = load_checklist(checklist)
    findings = review(loaded)
    if scores is not None:
        findings += review_answers(loaded, _sample(scores, loaded.ids))
    for finding in findings:
        print(f"{checklist}: {finding.question or 'checklist'}: {finding.text}")
    if findings:
        raise typer.Exit(1)
    print(f"{checklist}: {len(loaded.questions)} questions, nothing to mend")


def _check_folder(out: Path) -> None:
    """Refuse a file that could not be written, before hours of scoring."""
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: no folder {out.parent}")


def _meanings(answers: list[str] | None) -> dict[str, str]:
    meanings = {}
    for entry in answers or ():
        spelling, equals, meaning = entry.rpartition("=")
        if not equals or not spelling:
            raise ConfigError(f"--answer {entry}: needed SPELLING=1, SPELLING=2 or SPELLING=tie")
        meanings[spelling] = meaning
    return meanings


def _reward(path: Path, settings: list[str] | None, cache: Path | None):
    """The reward or baseline of a YAML file."""
    from rewards.baselines import KINDS, Similarity
    from rewards.build import load_reward
    from rewards.settings import read_yaml

    content = read_yaml(path)
    if content.get("kind") in KINDS:
        return Similarity.from_settings(content, str(path))
    return load_reward(reward_settings(path, None, None, settings, cache))


def _sample(path: Path, ids: tuple[str, ...]) -> list[list[float]]:
    """P(yes) [items, Q] of a file of scores: lists in the checklist's order, or numbers by question id."""
    from rewards.tables import read_table

    table = read_table(path)
    rows = table.column("p_yes")
    return [[row[name] for name in ids] if isinstance(row, dict) else row for row in rows]
