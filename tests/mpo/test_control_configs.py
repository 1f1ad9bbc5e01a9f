"""The presets of configs/control and the files of configs/ablations: settings that exist, roles that fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from mpo.ablation import load_ablation, members
from mpo.artifacts import resolve
from mpo.config import ObjectivesConfig, load
from mpo.objectives import parts, settings_by_name
from mpo.scores import paths
from rewards import load_checklist

ROOT = Path(__file__).parents[2]
RELEASE = ROOT.parent / "shared" / "visionreward"
BASES = ("quickstart_video", "quickstart", "sd15", "cogvideox_2b")
# preset -> what it improves and what it holds, of all that it compares; a part of a dimension by its path
ROLES = {
    "quickstart_alignment_only": ("alignment", "composition setting quality"),
    "quickstart_quality_composition_held": ("quality", "composition"),
    "quickstart_all_setting_held": ("alignment composition quality", "setting"),
    "quickstart_video_quality_dynamic_held": ("quality", "dynamic"),
    "sd15_alignment_only": ("alignment", "composition quality safety_emotion fidelity"),
    "sd15_quality_alignment_held": ("quality", "alignment"),
    "sd15_all_safety_held": (
        "alignment composition quality safety_emotion fidelity",
        "safety_emotion.safety",
    ),
    "cogvideox_2b_alignment_only": (
        "alignment",
        "composition stability quality preservation dynamic fidelity physics",
    ),
    "cogvideox_2b_quality_dynamic_held": ("quality", "dynamic.camera_motion"),
    "cogvideox_2b_all_dynamic_held": (
        "alignment composition stability quality preservation fidelity physics",
        "dynamic",
    ),
}


def preset(name):
    return load(ROOT / "configs" / "control" / f"{name}.yaml")


def test_every_preset_is_its_base_but_for_name_and_objectives():
    assert {path.stem for path in (ROOT / "configs" / "control").glob("*.yaml")} == set(ROLES)
    for name in ROLES:
        base = next(base for base in BASES if name.startswith(base))
        plain = replace(preset(name), name=base, objectives=ObjectivesConfig(), run_dir=f"runs/{base}")
        base_config = load(ROOT / "configs" / f"{base}.yaml")
        assert plain == replace(base_config, objectives=ObjectivesConfig()), name


@pytest.mark.parametrize("name", ROLES)
def test_presets_improve_and_hold_what_they_say(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = preset(name)
    source = config.reward.checklist
    if source.startswith("visionreward-"):
        source = RELEASE / source.removeprefix("visionreward-")
        if not source.is_dir():
            pytest.skip(f"needs the release's question lists in {source}")
    checklist = load_checklist(str(source), config.reward.policy, config.reward.questions)
    dims = config.objectives.dims
    found = list(parts(paths(checklist), config.objectives.granularity, dims))
    settings = dict(zip(found, settings_by_name(found, dims), strict=True))
    for role, names in zip(("improve", "hold"), ROLES[name], strict=True):
        assert {key for key, setting in settings.items() if setting.role == role} == set(names.split())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "ablations").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_ablation_has_runs_with_settings_that_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    ablation = load_ablation(path)
    assert ablation.name == path.stem
    found = members(ablation)
    assert len({member.config.name for member in found}) == len(found) >= 4
    assert len({member.config.generate.candidates for member in found}) == 1  # sampled once


def test_the_papers_ablation_has_the_papers_thresholds(monkeypatch):
    """.8, .6, .5 and .4 of the summed score; the released score is the mean over 29 questions."""
    monkeypatch.chdir(ROOT)
    found = members(load_ablation(ROOT / "configs" / "ablations" / "paper_cogvideox.yaml"))
    margins = [29 * member.config.pairs.margin for member in found]
    assert margins == pytest.approx([0.8, 0.6, 0.5, 0.4], abs=2e-3)
    levels = [member.config.objectives.granularity for member in found]
    assert levels == ["total", "dimension", "subdimension", "question"]


def test_the_ablation_of_presets_has_their_objectives(monkeypatch):
    monkeypatch.chdir(ROOT)
    arms = {m.arm.name: m.config for m in members(load_ablation(ROOT / "configs/ablations/control.yaml"))}
    assert arms.pop("all_improved").objectives == load(ROOT / "configs/quickstart.yaml").objectives
    for name, config in arms.items():
        assert config.objectives == preset(f"quickstart_{name}").objectives
    assert len(arms) == 3


def test_the_presets_of_a_seed_sample_and_score_once(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    found = {}
    for member in members(load_ablation(ROOT / "configs/ablations/control.yaml")):
        made = resolve(replace(member.config, store=str(tmp_path)), now=False).artifacts
        parts = made.candidates, made.scores, made.base, made.base_scores
        found.setdefault(member.seed, []).append(([part.name for part in parts], made.pairs.name))
    for arms in found.values():
        shared, pairs = zip(*arms, strict=True)
        assert all(names == shared[0] for names in shared) and len(set(pairs)) == len(arms) == 4
    assert len({str(arms[0]) for arms in found.values()}) == 3  # seeds share none
