"""The stages in order. Each reads the artifacts of those before it and writes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from accelerate import PartialState
from tqdm import tqdm

from generators.adapters import check_targets
from generators.build import family_class
from generators.loading import device_name
from mpo import foreign
from mpo.artifacts import Round, Run, kept_weights, reached, weights
from mpo.config import GRANULARITIES, STAGES
from mpo.evaluate import evaluation
from mpo.foreign_pairs import read_pairs
from mpo.models import Models
from mpo.objectives import at_granularity, parts, weights_in_total
from mpo.out_of_memory import encoding, sampling, scoring, told_where
from mpo.pairs import choose_pairs, given_pairs
from mpo.processes import join, make, share
from mpo.samples import sample_shard
from mpo.scores import first_candidates, paths, read_scores, refuse_unscored, write_names, write_scores
from mpo.store import Artifact, read_table, write_bytes, write_json, write_table
from mpo.timing import note
from mpo.training import select, train
from mpo.training_arguments import check_integrations, check_training
from mpo.yields import MARGINS, yield_report
from rewards import check_reward, load_checklist

if TYPE_CHECKING:
    from mpo.tracking import Tracker

PAIRS = {"prompt_id": "int64", "winner": "int64", "loser": "int64", "gap": "double"}


@dataclass(frozen=True)
class Session:
    """One process at work on a run."""

    run: Run
    process: PartialState
    models: Models
    tracker: Tracker | None = None

    def bar(self, total: int, what: str) -> tqdm:
        """A progress bar over this process's share, shown by the main process."""
        return tqdm(total=total, desc=what, disable=not self.process.is_main_process, dynamic_ncols=True)

    def make(self, artifact: Artifact, work: Callable[[], Mapping[str, Any] | None]) -> Mapping[str, Any]:
        """Complete the artifact by `work`; the time is noted where this makes all of it."""
        begun, start = artifact.folder.is_dir(), None

        def timed() -> Mapping[str, Any] | None:
            nonlocal start
            start = perf_counter()
            return work()

        facts = make(artifact, self.process, timed)
        if start is not None and not begun and self.process.is_main_process:
            name = next(name for name, made in self.run.artifacts.items() if made == artifact)
            note(self.run, name, perf_counter() - start)
        return facts


def run_stages(run: Run, until: str = "report") -> None:
    """Run the stages up to `until`; what is complete is skipped, what was begun goes on."""
    session = begin(run)
    if session.process.is_main_process:
        run.publish()  # so that `mpo show` knows a run that is killed in its first stage
    with _tracked(session) as tracker:
        session = replace(session, tracker=tracker)
        for stage, made in _order(run, until):
            _run_stage(session, stage, made)
            if session.process.is_main_process:
                run.publish()
            if tracker and made in (None, run.artifacts.rounds[-1]):
                tracker.after(stage)


def _run_stage(session: Session, stage: str, made: Round | None) -> None:
    match stage:
        case "generate":
            candidates(session, made)
        case "score":
            score(session, made.scores, made.candidates)
        case "pair":
            pair(session, made)
        case "train":
            train(session, made)
            if made.validated:
                validate(session, made)
        case "evaluate":
            evaluate(session)
        case "report":
            report(session)


def _tracked(session: Session) -> AbstractContextManager[Tracker | None]:
    if session.run.config.tracking.wandb.project is None or not session.process.is_main_process:
        return nullcontext()
    from mpo.tracking import tracking

    return tracking(session.run)


def run_shared(run: Run) -> None:
    """Make what does not depend on pairing or training, which the arms of an ablation have in common."""
    session, first, made = begin(run), run.artifacts.rounds[0], run.artifacts
    candidates(session, first)
    score(session, first.scores, first.candidates)
    generate(session, made.base, run.heldout_prompts, what="base samples")
    score(session, made.base_scores, made.base, what="base scores")
    if oracle := run.config.evaluate.oracle:
        score(session, made.base_facts, made.base, oracle, what="base facts")


def begin(run: Run) -> Session:
    """This process's session on a run that has passed its checks."""
    process = join(run.config.generator.device)
    check(run, process.num_processes)
    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()
    return Session(run, process, Models(run.config))


def _order(run: Run, until: str) -> Iterator[tuple[str, Round | None]]:
    """The stages up to `until`, each with its round; one within a round ends the first, `train` the last."""
    of_round = STAGES[: STAGES.index("train") + 1]
    for made in run.artifacts.rounds:
        for stage in of_round:
            yield stage, made
            if stage == until != "train":
                return
    for stage in STAGES[len(of_round) : STAGES.index(until) + 1]:
        yield stage, None


def check(run: Run, processes: int = 1) -> None:
    """Refuse what devices, checklist, objectives and training cannot be, before anything is sampled."""
    for name in ("generator", "reward"):
        if getattr(run.config, name).device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{name}.device = 'cuda': torch finds no CUDA GPU here; must be auto or cpu")
    check_integrations(run.config.train.report_to)
    reward, objectives = run.config.reward, run.config.objectives
    checklist = load_checklist(reward.checklist, reward.policy, reward.questions)
    check_reward(reward, checklist)
    made = family_class(run.config.generator.family).modality
    if checklist.modality not in (None, made):
        raise ValueError(
            f"reward.checklist = {reward.checklist!r}: it asks about {checklist.modality}s, "
            f"generator.family = {run.config.generator.family!r} makes {made}s"
        )
    for granularity in (objectives.granularity, *GRANULARITIES):  # the yield is told at all of them
        weights_in_total(list(parts(paths(checklist), granularity, objectives.dims)), objectives.dims)
    generator, train = run.config.generator, run.config.train
    check_training(train, processes, cpu=device_name(generator.device) == "cpu")
    if train.mode == "lora" and train.lora.targets:
        check_targets(generator, train.lora.targets)


def candidates(session: Session, made: Round) -> None:
    """Sample the round's candidates for the training prompts, or take in the pairs from elsewhere."""
    if session.run.config.pairs.source:
        bring(session, made)
    else:
        start = made.before and weights(made.before)
        first = session.run.artifacts.rounds[0].candidates if made.before else None
        generate(session, made.candidates, session.run.train_prompts, start, encoded=first)


def generate(
    session: Session,
    artifact: Artifact,
    prompts: Sequence[str],
    tuned: Path | None = None,
    what: str = "generate",
    encoded: Artifact | None = None,
) -> None:
    """Sample `artifact`: every prompt's candidates, their latents, and the prompts' conditioning, by the base
    model or with the weights in `tuned`. Training changes no text encoder, so the conditioning is that of
    `encoded`, earlier samples of the same prompts, where there are some."""
    config, samples = session.run.config.generate, artifact.inputs["samples"]
    size = config.shard_size

    def work() -> Mapping[str, Any]:
        mine = share(-(-len(prompts) // size), session.process)
        with session.bar(sum(len(prompts[i * size : (i + 1) * size]) for i in mine) * samples, what) as bar:
            for index in mine:
                ids = range(index * size, min((index + 1) * size, len(prompts)))
                if not artifact.shard("candidates", index).is_file():
                    texts = {i: prompts[i] for i in ids}
                    with told_where(*sampling(session.run.config)):
                        generator = session.models.generator(tuned)
                        sample_shard(artifact, index, texts, generator, config.batch_size, encoded)
                bar.update(len(ids) * samples)
        return {"prompts": len(prompts), "samples": len(prompts) * samples}

    session.make(artifact, work)


def bring(session: Session, made: Round) -> None:
    """Encode the pairs of `pairs.from` to latents and conditioning, as if they had been sampled here."""
    run, artifact = session.run, made.candidates
    source, size = run.config.pairs.source, run.config.generate.shard_size
    allowed = run.config.pairs.allow_bad

    def work() -> Mapping[str, Any]:
        with session.process.main_process_first():  # it fills the cache of `datasets` for the others
            pairs = read_pairs(source, artifact.inputs["revision"])
        for name, prompts in (("heldout", run.heldout_prompts), ("validation", run.validation_prompts)):
            foreign.refuse_shared(pairs, name, prompts)
        foreign.refuse_bad(artifact, pairs, source, allowed)  # those that can be told by their row alone
        mine = share(-(-len(pairs.rows) // size), session.process)
        with session.bar(sum(len(foreign.members(pairs, i, size)) for i in mine), "encode") as bar:
            for index in mine:
                members = foreign.members(pairs, index, size)
                if not artifact.shard("candidates", index).is_file():
                    with told_where(*encoding(run.config)):
                        foreign.foreign_shard(artifact, index, pairs, members, session.models.generator())
                bar.update(len(members))
        session.process.wait_for_everyone()
        if session.process.is_main_process:
            return foreign.brought(artifact, pairs, source, allowed)
        return {}

    session.make(artifact, work)


def score(
    session: Session, artifact: Artifact, samples: Artifact, oracle: str | None = None, what: str = "score"
) -> None:
    """Score every sample of `samples` by the run's reward, or by the oracle."""

    def work() -> None:
        tables = samples.shards("candidates")
        todo = [i for i in share(len(tables), session.process) if not artifact.shard("scores", i).is_file()]
        with session.bar(sum(len(read_table(tables[i])) for i in todo), what) as bar:
            for index in todo:
                with told_where(*scoring(session.run.config)):
                    reward = session.models.reward(oracle)
                rows = read_table(tables[index])
                media = [samples.folder / row["media"] for row in rows]
                cards = []
                with told_where(*scoring(session.run.config)):
                    texts = [row["prompt"] for row in rows]
                    for card in reward.stream(media, texts, silence_is_error=False):
                        cards.append(card)
                        bar.update()
                write_names(artifact, reward.checklist)
                keys = [(row["prompt_id"], row["candidate"]) for row in rows]
                write_scores(artifact, index, keys, cards, reward.checklist)
        session.process.wait_for_everyone()
        if session.process.is_main_process:
            refuse_unscored(artifact)

    session.make(artifact, work)


def pair(session: Session, made: Round) -> None:
    """Find the pairs in which one candidate dominates another, choose among them, and report the yield."""
    config = session.run.config

    def work() -> Mapping[str, Any] | None:
        if not session.process.is_main_process:
            return None
        table = read_scores(made.scores)
        levels = first_candidates(table.levels, config.pairs.candidates)
        dims, tolerance = config.objectives.dims, config.pairs.tolerance
        by_granularity = {name: at_granularity(levels, name, dims, tolerance) for name in GRANULARITIES}
        if config.pairs.source:
            chosen = given_pairs(levels["total"][1][..., 0], foreign.pair_ids(made.candidates))
        else:
            chosen = choose_pairs(by_granularity[config.objectives.granularity], config.pairs, made.seed)
        margins = [factor * config.pairs.margin for factor in MARGINS]
        write_json(made.pairs.folder / "yield.json", yield_report(by_granularity, margins).to_dict())
        columns = (chosen.prompt, chosen.winner, chosen.loser, chosen.gap)
        rows = [
            dict(zip(PAIRS, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)
        ]
        write_table(made.pairs.folder / "pairs.parquet", rows, PAIRS)
        return {"pairs": len(chosen), "prompts": len(chosen.prompt.unique())}

    session.make(made.pairs, work)


def validate(session: Session, made: Round) -> None:
    """Sample and score the validation prompts with the weights of every step that is to be compared."""
    prompts = session.run.validation_prompts
    for step, planned in reached(made).items():
        samples, scores = made.validated[planned]
        start = kept_weights(made.training, planned) if step else made.before and weights(made.before)
        first = made.validated[0][0] if step else None
        generate(session, samples, prompts, start, f"validation, step {step}", first)
        score(session, scores, samples, what=f"scores, step {step}")
    select(session, made)


def evaluate(session: Session) -> None:
    """Compare base and tuned model on the held-out prompts, sampled from the same seeds."""
    run, made = session.run, session.run.artifacts
    generate(session, made.base, run.heldout_prompts, what="base samples")
    generate(session, made.tuned, run.heldout_prompts, weights(made.result), "tuned samples", made.base)
    score(session, made.base_scores, made.base, what="base scores")
    score(session, made.tuned_scores, made.tuned, what="tuned scores")
    if oracle := run.config.evaluate.oracle:
        score(session, made.base_facts, made.base, oracle, what="base facts")
        score(session, made.tuned_facts, made.tuned, oracle, what="tuned facts")

    def work() -> Mapping[str, Any] | None:
        if not session.process.is_main_process:
            return None
        found = evaluation(run)
        write_json(made.evaluation.folder / "evaluation.json", found)
        fallen = [f"{name} (by {reward})" for reward, part in found.items() for name in part["regressions"]]
        return {"regressions": fallen}

    session.make(made.evaluation, work)


def report(session: Session) -> None:
    """Write the page that shows all of it, the curves as a table, and the tuned model's card."""
    from mpo.card import model_card
    from mpo.progress import validated
    from mpo.report import curves_csv, render

    run, made = session.run, session.run.artifacts

    def work() -> None:
        if session.process.is_main_process:
            write_bytes(made.report.folder / "curves.csv", curves_csv(made.training, validated(run)).encode())
            write_bytes(made.report.folder / "README.md", model_card(run).encode())
            write_bytes(made.report.folder / "report.html", render(run).encode())

    session.make(made.report, work)
