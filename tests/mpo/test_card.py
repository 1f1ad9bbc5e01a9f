"""The tuned model's card and the curves as a table, from a made-up run."""

import csv
import io
import json
from dataclasses import replace

import pytest
import yaml
from test_report import fake_run

from mpo.card import model_card
from mpo.config import ObjectiveConfig, load
from mpo.report import curves_csv, facts, read_log
from mpo.store import Artifact, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = fake_run(tmp_path_factory.mktemp("run"))
    write_json(run.artifacts.pairs.folder / "done.json", {"pairs": 9, "prompts": 4})
    config = run.config
    config.generator.path, config.prompts.train = "maker/model", "foxes.txt"
    quality, shape = ObjectiveConfig(role="hold"), ObjectiveConfig(weight=2.0, margin=0.5)
    config.objectives.dims = {"quality": quality, "shape": shape}
    return replace(run, config=config)


def test_the_card_says_what_was_made_of_what_and_what_changed(run, tmp_path):
    card = model_card(run)
    _, head, body = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["base_model"] == "maker/model" and metadata["library_name"] == "diffusers"
    assert metadata["pipeline_tag"] == "text-to-image" and "lora" in metadata["tags"]
    assert f'pipe.load_lora_weights("{run.folder / "adapter"}")' in body
    assert "5 from `foxes.txt`" in body and "9 preference pairs from 4 of the prompts" in body
    assert "`quality`: role hold.\n- `shape`: role improve, weight 2, margin 0.5.\n" in body
    rows = [line.split("|")[1:3] for line in body.splitlines() if line.startswith("| ")]
    assert [name.strip() for name, _ in rows[:5]] == ["judge", "total", "alignment", "composition", "quality"]
    settings = tmp_path / "config.yaml"
    settings.write_text(body.split("```yaml\n")[1].split("```")[0])
    assert (
        load(settings, ["reward.judge=j", "reward.checklist=c", "prompts.heldout=h"]).objectives
        == run.config.objectives
    )


def test_the_card_has_the_figures_of_the_evaluation_and_the_limits(run, tmp_path):
    evaluation = json.loads((run.artifacts.evaluation.folder / "evaluation.json").read_text())

    def sections(run):
        return dict(part.split("\n", 1) for part in model_card(run).split("\n## ")[1:])

    body = sections(run)
    for reward in ("judge", "oracle"):
        row = evaluation[reward]["dimensions"]["quality"]
        low, high = row["ci95"]
        numbers = f"{row['base']:.3f} | {row['tuned']:.3f} | {row['delta']:+.3f} | {low:+.3f} to {high:+.3f}"
        shares = " | ".join(f"{row[key]:.0%}".replace("%", " %") for key in ("win", "tie", "loss"))
        assert f"\n| quality | {numbers} | {shares} |\n" in body["What changed"].split(f"| {reward} |")[1]
    limits = body["Intended use and limits"]
    assert "research on preference optimisation" in limits and "licence" in limits
    assert "the oracle, which took no part in training" in limits
    assert "No dimension fell significantly" in limits and "Nothing was measured about safety" in limits
    fallen = Artifact(tmp_path / "fallen", {})
    fallen.folder.mkdir()
    evaluation["judge"]["regressions"] = ["shape"]
    write_json(fallen.folder / "evaluation.json", evaluation)
    limits = sections(replace(run, artifacts=replace(run.artifacts, evaluation=fallen)))
    assert "Significantly fallen: shape (by the judge)." in limits["Intended use and limits"]


def test_the_card_says_where_given_pairs_come_from_and_what_rounds_were_sampled_from(run):
    def changed(**settings):
        return replace(run, config=replace(run.config, **settings))

    picks = changed(pairs=replace(run.config.pairs, source="people/picks"))
    card = model_card(picks)
    assert "on the preference pairs of `people/picks`" in card and "9 preference pairs with 4 prompts" in card
    assert (
        "a model's, not people's" not in card
        and "candidates a prompt" not in card
        and "`quality`" not in card
    )
    assert "pairs of people/picks" in facts(picks.config)
    card = model_card(changed(rounds=3))
    assert "3 rounds of 8 candidates a prompt" in card and "sampled from the base model;" not in card


def test_a_base_model_in_a_folder_has_no_name_on_the_hub(run, tmp_path):
    run.config.generator.path = str(tmp_path)
    try:
        assert "base_model" not in yaml.safe_load(model_card(run).split("---\n")[1])
    finally:
        run.config.generator.path = "maker/model"


def test_the_curves_as_csv_are_those_that_were_logged(run):
    rows = list(csv.DictReader(io.StringIO(curves_csv(run.artifacts.training, {}))))
    log = read_log(run.artifacts.training)
    assert [int(row["step"]) for row in rows] == list(range(10, 160, 10))
    assert [float(row["loss"]) for row in rows] == [entry["loss"] for entry in log if "loss" in entry]
