"""Runs side by side: paired by prompt, whichever order the prompts stand in."""

from dataclasses import replace

import pytest
import torch
from test_report import Tags, embedded, fake_run

from mpo.compare import Comparison, compare_page, compare_runs
from mpo.config import ObjectiveConfig, ObjectivesConfig
from mpo.scores import read_scores
from mpo.show import comparison_table
from mpo.store import write_json


def evaluated(folder, name, prompts=6):
    run = fake_run(folder / name, heldout=prompts)
    write_json(run.artifacts.evaluation.folder / "done.json", {"regressions": []})
    return replace(run, config=replace(run.config, name=name))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs; the second's tuned scores are its base scores, so that the two differ."""
    folder = tmp_path_factory.mktemp("runs")
    one, two = evaluated(folder, "one"), evaluated(folder, "two")
    made = replace(
        two.artifacts, tuned_scores=two.artifacts.base_scores, tuned_facts=two.artifacts.base_facts
    )
    two.config.train.beta = 500.0
    return one, replace(two, artifacts=made)


def test_differences_are_paired_by_prompt(runs):
    found = compare_runs(runs)
    assert found.paired and found.names == ["one", "two"]
    one, two = (read_scores(run.artifacts.tuned_scores).levels["dimension"][1][:, 0] for run in runs)
    scored = ~(one + two).isnan().any(1)
    names = read_scores(runs[0].artifacts.tuned_scores).levels["dimension"][0]
    for k, name in enumerate(names):
        first, second = found.scores["judge"][name]
        assert first.delta == 0 and second.delta == pytest.approx((two - one)[scored][:, k].mean().item())
        assert second.ci95[0] <= second.delta <= second.ci95[1]
    assert found.settings == {"train.beta": [2000.0, 500.0]}
    held = ObjectivesConfig(dims={"quality": ObjectiveConfig(role="hold", tolerance=0.1)})
    other = replace(runs[1], config=replace(runs[0].config, objectives=held))
    assert compare_runs([runs[0], other]).settings == {
        "objectives.dims.quality": ["–", "hold, tolerance 0.1"]
    }


def test_the_order_of_prompts_changes_nothing(runs):
    one, two = runs
    order = [3, 0, 5, 1, 4, 2]
    table = read_scores(two.artifacts.tuned_scores)
    expected = compare_runs(runs).scores["judge"]
    mixed = replace(two, heldout_prompts=[two.heldout_prompts[i] for i in order])

    def reordered(artifact):
        found = read_scores(artifact)
        if artifact != two.artifacts.tuned_scores:
            return found
        return replace(found, levels={key: (names, s[order]) for key, (names, s) in found.levels.items()})

    assert not torch.equal(
        table.levels["total"][1][order].nan_to_num(), table.levels["total"][1].nan_to_num()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpo.compare.read_scores", reordered)
        found = compare_runs([one, mixed]).scores["judge"]
    for name, cells in expected.items():
        assert found[name][1].delta == pytest.approx(cells[1].delta)
        assert found[name][1].ci95 == pytest.approx(cells[1].ci95)


def test_other_prompts_are_not_paired(runs, tmp_path):
    found = compare_runs([runs[0], evaluated(tmp_path, "three", prompts=7)])
    assert not found.paired and found.prompts == [6, 7]
    low, high = found.scores["judge"]["total"][1].ci95
    assert low < high


def test_what_cannot_be_compared_is_one_line(runs, tmp_path):
    with pytest.raises(ValueError, match="at least two runs"):
        compare_runs(runs[:1])
    unfinished = evaluated(tmp_path, "four")
    (unfinished.artifacts.evaluation.folder / "done.json").unlink()
    with pytest.raises(ValueError, match="is not evaluated yet"):
        compare_runs([runs[0], unfinished])


def test_the_page_has_the_same_prompts_by_every_run(runs):
    html = compare_page(runs, "one <and> two")
    content = embedded(html)["galleries"]["samples"]
    assert content["steps"] == ["base", "one", "two"] and "<and>" not in html
    assert len(content["cards"]) == 6 and all(len(card["samples"]) == 3 for card in content["cards"])
    assert not Tags(html).all("link") and "train.beta" in html


def test_runs_that_were_scored_differently_are_told(capsys):
    for settings, told in (({"reward.checklist": ["a.yaml", "b.yaml"]}, True), ({"seed": [0, 1]}, False)):
        comparison_table(Comparison(["one", "two"], True, [3, 3], {}, settings))
        out = capsys.readouterr().out
        assert ("scored differently (reward.checklist): these numbers are not of one measure" in out) == told
