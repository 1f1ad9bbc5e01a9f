"""What an ablation reports, from scores whose truth is known: one arm is better, one is not."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scipy import stats
from test_report import SAMPLES, embedded

from mpo.ablate import Job
from mpo.ablation import Ablation, Member
from mpo.ablation_pages import show_results
from mpo.ablation_results import results
from mpo.ablation_roles import roles_kept
from mpo.ablation_tables import latex, markdown
from mpo.artifacts import Artifacts, Run
from mpo.config import ObjectiveConfig, ObjectivesConfig, RunConfig
from mpo.evaluate import evaluation
from mpo.scores import read_scores, write_names, write_scores
from mpo.significance import holm, paired
from mpo.store import Artifact, read_table, write_json, write_table
from rewards.checklist import Checklist, Question
from rewards.scorecard import scorecard

P = 60
CHECKLIST = Checklist(
    "two", tuple(Question(n, f"{n}?", n, f"{n} part", 1.0) for n in ("sharp", "true_to_it"))
)
ABLATION = Ablation(
    "trial", "base.yaml", {"rule": {"dpo": {}, "better_&_so": {}, "same": {}, "not_run": {}}}, seeds=[0, 1, 2]
)
YES = {"dpo": (0.6, 0.6), "better_&_so": (0.95, 0.6), "same": (0.6, 0.6)}  # chance of yes to each question


def scored(artifact, chances, draw):
    artifact.folder.mkdir(parents=True)
    p_yes = torch.where(torch.rand(P, 2, generator=draw) < torch.tensor(chances), 0.95, 0.05).double()
    cards = [scorecard("x", "p", CHECKLIST, CHECKLIST.score(row), row, torch.zeros(2), {}) for row in p_yes]
    write_names(artifact, CHECKLIST)
    write_scores(artifact, 0, [(number, 0) for number in range(P)], cards, CHECKLIST)
    return artifact


def drawn(artifact, colour):
    """The artifact with a picture of one colour for each prompt."""
    (artifact.folder / "media").mkdir(parents=True)
    rows = []
    for number in range(P):
        row = {"prompt_id": number, "prompt": f"prompt {number}", "candidate": 0, "seed": number}
        rows.append(row | {"media": f"media/{number}.png"})
        Image.new("RGB", (2, 2), (colour, 0, number)).save(artifact.folder / rows[-1]["media"])
    write_table(artifact.shard("candidates", 0), rows, SAMPLES)
    return artifact


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A job for each arm and seed; the last arm has run for none of them."""
    folder = tmp_path_factory.mktemp("ablation")
    found = []
    for seed in ABLATION.seeds:
        base = scored(Artifact(folder / f"base-{seed}", {}), (0.5, 0.6), torch.Generator().manual_seed(seed))
        pictures = drawn(Artifact(folder / f"pictures-{seed}", {}), 255)
        for number, arm in enumerate(ABLATION.arms()):
            place = folder / f"{number}-{seed}"
            parts = {
                name: Artifact(place / name, {})
                for name in Artifacts.__dataclass_fields__
                if name != "rounds"
            }
            made = replace(
                Artifacts(**parts), base=pictures, base_scores=base, base_facts=None, tuned_facts=None
            )
            config = RunConfig(name=f"{arm.name}-seed{seed}", run_dir=str(place), seed=seed)
            run = Run(config, [], [f"prompt {n}" for n in range(P)], made)
            if chances := YES.get(arm.labels["rule"]):
                drawn(made.tuned, number)
                scored(made.tuned_scores, chances, torch.Generator().manual_seed(10 * number + seed + 100))
                for artifact, facts in ((made.pairs, {"pairs": 40 + seed}), (made.evaluation, {})):
                    artifact.folder.mkdir()
                    artifact.finish(facts)
                write_json(made.evaluation.folder / "evaluation.json", evaluation(run))
            found.append(Job(Member(arm, seed, config), run))
    return found


def test_means_intervals_and_tests_are_those_of_the_scores(jobs):
    found = results(ABLATION, jobs)
    assert [arm.labels["rule"] for arm in found.arms] == ["dpo", "better_&_so", "same"] and found.missing == 3
    assert found.scores == [("judge", "total"), ("judge", "sharp"), ("judge", "true_to_it")]
    better, same = (found.result(arm, ("judge", "sharp")) for arm in ("better___so", "same"))

    def sharp(arm):  # [3, P] of each seed
        runs = [job.run.artifacts for job in jobs if job.member.arm.labels["rule"] == arm]
        levels = [
            [
                read_scores(part).levels["dimension"][1][:, 0, 0]
                for part in (run.base_scores, run.tuned_scores)
            ]
            for run in runs
        ]
        return torch.stack([tuned - base for base, tuned in levels])

    means = sharp("better_&_so").mean(1)
    interval = stats.t.interval(0.95, 2, float(means.mean()), float(means.std() / 3**0.5))
    assert (better.change.low, better.change.high) == pytest.approx(interval)
    assert better.against.mean == pytest.approx(float((sharp("better_&_so") - sharp("dpo")).mean()))
    # yes is +1, no -1, so 95 % against 60 % is worth 2 * .35
    assert better.against.mean == pytest.approx(0.7, abs=0.25) and better.p_holm < 0.05
    assert same.p_holm > 0.05 and same.against.low < 0 < same.against.high
    assert better.p_holm == pytest.approx(min(1, 2 * better.against.p))  # the least of two


def test_tables_and_plots_are_written_whole(jobs, tmp_path, capsys):
    ablation = replace(ABLATION, folder=str(tmp_path))
    show_results(ablation, jobs, [("judge", "sharp"), ("judge", "total")])
    rows = read_table(tmp_path / "ablation.parquet")
    assert {(row["arm"], row["seed"], row["pairs"]) for row in rows} == {
        (arm, seed, 40 + seed) for arm in ("dpo", "better___so", "same") for seed in (0, 1, 2)
    }
    assert {row["level"] for row in rows} == {"total", "dimension", "subdimension"}
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert content["base_arm"] == "dpo" and content["missing_runs"] == 3 and len(content["results"]) == 9
    table = (tmp_path / "table.md").read_text()
    (line,) = [line for line in table.splitlines() if line.startswith("| better_&_so |") and "* (" in line]
    assert "3 runs are not complete and not counted." in table
    tex = (tmp_path / "table.tex").read_text()
    assert r"better\_\&\_so & 41 &" in tex and tex.count(r"\toprule") == 2 and "judge true to it" in tex
    for name in ("axis-rule.svg", "pareto-sharp-total.svg"):
        assert (tmp_path / name).read_text().rstrip().endswith("</svg>")
    assert "ablation.parquet" in capsys.readouterr().out
    html = (tmp_path / "ablation.html").read_text()
    gallery = embedded(html)["galleries"]["samples"]
    assert gallery["steps"] == ["base", "dpo-seed0", "better___so-seed0", "same-seed0"]
    assert gallery["of"] == P and "axis rule" in html and "pareto sharp total" in html
    assert {len(card["samples"]) for card in gallery["cards"]} == {4}


def asking(jobs, dims):
    """The jobs with other objectives, by their arm's rule."""
    found = []
    for job in jobs:
        objectives = ObjectivesConfig(dims=dims.get(job.member.arm.labels["rule"], {}))
        config = replace(job.run.config, objectives=objectives)
        found.append(replace(job, run=replace(job.run, config=config)))
    return found


def test_a_rise_is_corrected_and_a_fall_of_what_is_held_is_not(jobs):
    found = results(ABLATION, jobs)
    assert roles_kept(found, jobs) == []  # every arm improves everything
    hold, ignore = ObjectiveConfig(role="hold"), ObjectiveConfig(role="ignore")
    part = {"sharp part": hold}  # a part's role is not its dimension's
    asked = asking(jobs, {"dpo": {"*": hold, "sharp": ObjectiveConfig()}, "better_&_so": {"true*": ignore}})
    kept = roles_kept(found, asked)
    assert [(one.arm, one.dimension, one.role) for one in kept] == [
        ("dpo", "sharp", "improve"),
        ("dpo", "true_to_it", "hold"),
        ("better___so", "sharp", "improve"),
        ("same", "sharp", "improve"),
        ("same", "true_to_it", "improve"),
    ]
    assert [one.role for one in roles_kept(found, asking(jobs, {"same": part | {"true*": hold}}))[-2:]] == [
        "improve",
        "hold",
    ]
    better = kept[2]
    values = []
    for job in asked:
        if job.member.arm.name == better.arm:
            scores = (job.run.artifacts.base_scores, job.run.artifacts.tuned_scores)
            before, after = (read_scores(part).levels["dimension"][1][:, 0, 0] for part in scores)
            values.append(after - before)
    test = paired(torch.stack(values))
    assert better.change == test and better.verdict == "rose"  # 95 % of yes against 50 %
    raw = [one.change.p for one in kept if one.role == "improve"]
    assert better.p == holm(raw)[1] > test.p and kept[1].p == kept[1].change.p
    fallen = replace(better, change=replace(test, mean=-test.mean))
    assert fallen.verdict == "fell" and replace(better, p=0.06).verdict == "open"
    table = markdown(found, kept)
    assert f"| better_&_so | sharp | improve | {test.mean:+.3f} | {test.low:+.3f} to " in table
    assert latex(found, kept).count(r"\toprule") == 3


def test_what_cannot_be_compared_says_so(jobs):
    with pytest.raises(ValueError, match="no score judge.motion; there are judge.total, judge.sharp"):
        show_results(ABLATION, jobs, [("judge", "motion"), ("judge", "sharp")])
    others = [job for job in jobs if job.member.arm.labels["rule"] != "dpo"]
    with pytest.raises(ValueError, match="the base arm dpo has no complete run yet"):
        results(ABLATION, others)
