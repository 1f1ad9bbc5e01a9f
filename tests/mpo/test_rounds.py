"""Several rounds, and the best checkpoint of each: a whole run in this process."""

import json
from functools import partial

import pytest
import torch
from tiny_pipelines import generator_config

from generators.adapters import FullTuning, LoraTuning
from generators.build import build_generator
from mpo import training
from mpo.artifacts import kept_weights, resolve, weights
from mpo.config import load
from mpo.pipeline import _order, run_stages
from mpo.plan import read_size, steps
from mpo.progress import validated
from mpo.show import validation_table
from mpo.training_arguments import training_arguments

KIND = "stable_diffusion"
CHANGES = {
    "prompts": {"train_limit": 4},
    "generate": {"candidates": 3},
    "train": {"steps": 3, "save_steps": 2, "logging_steps": 1},
}
SETTINGS = ["rounds=2", "validate.every=2", "validate.prompts=1", "pairs.rule=total", "pairs.margin=1e-6"]


@pytest.mark.parametrize(("mode", "reference"), [("lora", "previous"), ("full", "base")])
def test_a_second_round_goes_on_from_the_best_step_of_the_first(
    tiny_run, tmp_path, capsys, monkeypatch, mode, reference
):
    built = []
    monkeypatch.setattr(
        training, "build_generator", lambda *a, **b: built.append(build_generator(*a, **b)) or built[-1]
    )
    config = tiny_run(tmp_path, **CHANGES)
    settings = [*SETTINGS, f"reference={reference}", f"train.mode={mode}", "train.learning_rate=1e-3"]
    run = resolve(load(config, settings))
    assert run.validation_prompts == ["plain"]  # the fifth of the file; four are trained on
    first, second = run.artifacts.rounds
    run_stages(run, "train")
    # One a round is trained, and two of whole denoisers take the chosen step's weights.
    assert len(built) == (2 if mode == "lora" else 4)
    for generator in built:  # training and choosing load neither VAE nor text encoder
        parts = generator.pipe.components
        assert parts["vae"] is parts["text_encoder"] is None and parts["unet"] is generator.model
    for part in (first, second):
        rows = [json.loads(line) for line in (part.selection.folder / "validation.jsonl").open()]
        assert [row["step"] for row in rows] == [0, 2, 3]
        assert {"validation/total", "validation/d0", "validation/d1", "validation/d2"} < rows[0].keys()
        best = part.selection.facts()["step"]
        assert best in (2, 3)
        assert rows[best - 1]["validation/total"] == max(row["validation/total"] for row in rows[1:])
        kept, taken = load_weights(kept_weights(part.training, best)), load_weights(weights(part.selection))
        assert kept.keys() == taken.keys() and all(torch.equal(kept[name], taken[name]) for name in kept)
        last, exported = load_weights(kept_weights(part.training, 3)), load_weights(weights(part.training))
        assert all(torch.equal(last[name], exported[name]) for name in last)
    log = [json.loads(line) for line in (second.training.folder / "log.jsonl").open()]
    # compared with where it began, it starts at log 2; compared with the base, it has moved already
    assert (abs(log[0]["rewards/margins"]) < 1e-9) == (reference == "previous")
    assert second.candidates.inputs["adapter"] == first.selection.name
    published = run.folder / mode.replace("lora", "adapter").replace("full", "pipeline")
    for part in weights(second.selection).iterdir():
        assert (published / part.name).resolve() == part.resolve()
    validation_table(run)
    assert "1 validation samples, round 2" in capsys.readouterr().out
    states = {step.stage: step.state for step in steps(run, read_size(run.config.generator.path, run.config))}
    assert states["round 2: generate"] == states["validate: step 2"] == "there"
    assert states["evaluate: base"] == "to do"


def test_training_that_the_watch_stops_is_validated_where_it_ended(tiny_run, tmp_path, monkeypatch):
    always = partial(training_arguments, displacement_threshold=-1.0)
    monkeypatch.setattr(training, "training_arguments", always)
    stop = {"action": "stop", "patience": 3}
    config = tiny_run(tmp_path, **CHANGES | {"train": CHANGES["train"] | {"steps": 9, "displacement": stop}})
    settings = ["validate.every=8", "validate.prompts=1", "pairs.rule=total", "pairs.margin=1e-6"]
    run = resolve(load(config, settings))
    run_stages(run, "train")
    made = run.artifacts.rounds[0]
    ended = made.training.facts()["steps"]
    assert 1 < ended < 8 and made.training.facts()["events"][0]["action"] == "stop"
    rows = [json.loads(line) for line in (made.selection.folder / "validation.jsonl").open()]
    assert [row["step"] for row in rows] == [0, ended] and made.selection.facts()["step"] == ended
    assert list(validated(run)) == [0, ended]  # what the report shows
    taken, exported = load_weights(weights(made.selection)), load_weights(weights(made.training))
    assert all(torch.equal(taken[name], exported[name]) for name in exported)


def load_weights(folder):
    from safetensors.torch import load_file

    file = next(
        path
        for name in ("pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors")
        for path in (folder / name, folder / "unet" / name)
        if path.is_file()
    )
    return load_file(file)


def test_what_rounds_and_validation_share_with_a_run_without(tiny_run, tmp_path):
    config = tiny_run(tmp_path, **CHANGES)

    def made(*settings):
        return resolve(load(config, settings)).artifacts

    plain, twice = made(), made("rounds=2")
    assert (twice.rounds[0].training, twice.rounds[0].pairs) == (plain.training, plain.pairs)
    assert twice.candidates != plain.candidates and twice.base == plain.base and twice.tuned != plain.tuned
    assert dict(twice.items())["round_1_candidates"] == dict(plain.items())["candidates"]
    moved = made("rounds=2", "reference=previous")
    assert (moved.candidates, moved.pairs) == (twice.candidates, twice.pairs)
    assert moved.training != twice.training and made("reference=previous").training == plain.training
    best = made("validate.every=2", "validate.prompts=1")
    assert best.pairs == plain.pairs and best.result == best.rounds[0].selection
    more = made("validate.every=2", "validate.prompts=1", "validate.samples=2")
    assert more.training == best.training and more.result != best.result


def test_stages_within_a_round_end_the_first_and_train_ends_the_last(tiny_run, tmp_path):
    run = resolve(load(tiny_run(tmp_path), ["rounds=2"]))
    one, two = run.artifacts.rounds
    assert list(_order(run, "score")) == [("generate", one), ("score", one)]
    words = ("generate", "score", "pair", "train")
    both = [(word, part) for part in (one, two) for word in words]
    assert list(_order(run, "train")) == both
    assert list(_order(run, "report")) == [*both, ("evaluate", None), ("report", None)]


def disturb(generator):
    for parameter in generator.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.2)


def built(tiny_pipeline):
    return build_generator(generator_config(KIND, tiny_pipeline(KIND)), denoiser_only=True)


def predicted(model, generator):
    latents, embeds = torch.ones(1, 4, 8, 8), torch.ones(1, 16, 32)
    with torch.no_grad():
        return model(latents, torch.tensor([500]), {"prompt_embeds": embeds})


@pytest.mark.parametrize("against_start", [True, False])
def test_an_adapter_that_goes_on_is_compared_with_its_start_or_the_base(
    tiny_pipeline, tmp_path, against_start
):
    generator = built(tiny_pipeline)
    base = LoraTuning(generator, rank=2)
    untouched = predicted(base.policy, generator)
    disturb(generator)
    base.save(tmp_path)
    start = predicted(base.policy, generator)
    later = LoraTuning(built(tiny_pipeline), rank=2, dropout=0.5, start=tmp_path, against_start=against_start)
    later.policy.eval()
    assert torch.equal(predicted(later.policy, later.generator), start)
    disturb(later.generator)
    moved = predicted(later.policy, later.generator)
    later.policy.train()  # the reference has no dropout
    with later.reference(later.policy) as reference:
        assert torch.equal(predicted(reference, later.generator), start if against_start else untouched)
    later.policy.eval()
    assert torch.equal(predicted(later.policy, later.generator), moved) and not torch.equal(moved, start)
    names = {name.split(".")[-2] for name, p in later.generator.model.named_parameters() if p.requires_grad}
    assert names == {"default"}
    later.save(tmp_path / "later")
    assert not any("previous" in name for name in load_weights(tmp_path / "later"))


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_a_whole_denoiser_goes_on_from_float32_and_is_compared_with_its_start_or_the_base(
    tiny_run, tiny_pipeline, tmp_path, reference
):
    config = tiny_run(tmp_path)
    changes = ["rounds=2", "train.mode=full", "generator.dtype=bfloat16", f"reference={reference}"]
    run = resolve(load(config, changes))
    first, second = run.artifacts.rounds
    base = training._tuning(run.config, first)
    untouched = {name: value.clone() for name, value in base.state().items()}
    disturb(base.generator)
    base.export(first.training.folder / "pipeline")
    saved = base.state()
    weight = saved["conv_in.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())
    later = training._tuning(run.config, second)
    assert all(torch.equal(later.state()[name], value) for name, value in saved.items())
    expected = saved if reference == "previous" else untouched
    frozen = later.frozen.model.state_dict()
    assert frozen.keys() == expected.keys()
    assert all(torch.equal(frozen[name], value) for name, value in expected.items())
    assert not any(p.requires_grad for p in later.frozen.parameters())
    assert all(p.requires_grad for p in later.policy.parameters())
    assert FullTuning(later.generator, needed=False).frozen is None
