import shutil

import pytest
import torch
from tiny_pipelines import generator_config

from generators.adapters import FullTuning, LoraTuning, check_targets, load_adapter
from generators.build import build_generator
from generators.loading import precision

KIND = "stable_diffusion"


@pytest.fixture
def generator(tiny_pipeline):
    return build_generator(generator_config(KIND, tiny_pipeline(KIND)))


def disturb(generator):
    for parameter in generator.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.2)


def samples(generator):
    return generator.sample(generator.encode_prompts(["a red circle", "b"]), [1, 2]).latents


def test_a_fresh_adapter_changes_nothing_and_trains_nothing_else(generator):
    before = samples(generator)
    LoraTuning(generator, rank=4)
    assert torch.equal(samples(generator), before)
    assert all("lora_" in name for name, p in generator.model.named_parameters() if p.requires_grad)


def test_the_reference_is_the_model_without_the_adapter(generator):
    before = samples(generator)
    tuning = LoraTuning(generator, rank=4)
    disturb(generator)
    tuned = samples(generator)
    assert not torch.equal(tuned, before)
    with tuning.reference(tuning.policy):
        assert torch.equal(samples(generator), before)
    assert torch.equal(samples(generator), tuned)
    assert any(p.requires_grad for p in generator.model.parameters())


def test_modes_and_gradients_reach_all_that_they_concern(generator):
    policy = LoraTuning(generator, rank=4).policy
    ours = [p for name, p in policy.named_parameters() if "lora_" in name]
    assert len(ours) == len(policy.trained) > 8 and {*map(id, ours)} == {*map(id, policy.trained)}
    for mode in (False, True):
        policy.train(mode)
        assert {module.training for module in policy.modules()} == {mode}
    generator.model.eval()  # as sampling leaves it
    policy.train()
    assert all(module.training for module in policy.modules())
    for parameter in ours:
        parameter.grad = torch.ones_like(parameter)
    policy.zero_grad()
    assert all(parameter.grad is None for parameter in ours)


@pytest.mark.parametrize("kind", ["stable_diffusion", "wan"])  # whose first parameters stay in float32
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_inputs_come_in_the_precision_that_diffusers_names(tiny_pipeline, kind, dtype):
    other = build_generator(generator_config(kind, tiny_pipeline(kind), dtype=dtype), denoiser_only=True)
    LoraTuning(other, rank=2)
    assert str(precision(other.model)) == str(other.model.dtype) == f"torch.{dtype}"


def test_the_saved_adapter_reproduces_the_samples_in_a_plain_pipeline(generator, tiny_pipeline, tmp_path):
    tuning = LoraTuning(generator, rank=4, alpha=8)  # alpha other than rank: the scale must survive
    disturb(generator)
    tuned = samples(generator)
    tuning.export(tmp_path)
    other = build_generator(generator_config(KIND, tiny_pipeline(KIND)))
    load_adapter(other, tmp_path)
    assert torch.equal(samples(other), tuned)


def test_restore_reads_back_exactly(generator, tiny_pipeline, tmp_path):
    tuning = LoraTuning(generator, rank=4, seed=1)
    disturb(generator)
    tuning.save(tmp_path / "a")
    other = build_generator(generator_config(KIND, tiny_pipeline(KIND)))
    again = LoraTuning(other, rank=4, seed=2)
    again.restore(tmp_path / "a")
    again.save(tmp_path / "b")
    name = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert torch.equal(samples(other), samples(generator))


def test_full_tuning_keeps_a_frozen_reference_and_saves_a_pipeline(generator, tmp_path):
    before = samples(generator)
    tuning = FullTuning(generator)
    disturb(generator)
    tuned = samples(generator)
    reference = generator.pipe.unet
    generator.pipe.unet = tuning.frozen.model
    assert torch.equal(samples(generator), before)
    assert not any(p.requires_grad for p in tuning.frozen.parameters())
    generator.pipe.unet = reference
    tuning.export(tmp_path / "pipeline")
    assert torch.equal(samples(build_generator(generator_config(KIND, tmp_path / "pipeline"))), tuned)
    tuning.save(tmp_path / "checkpoint")
    disturb(generator)
    tuning.restore(tmp_path / "checkpoint")
    assert torch.equal(samples(generator), tuned)


def test_a_target_that_matches_nothing_is_one_line(generator):
    with pytest.raises(ValueError) as error:
        LoraTuning(generator, targets=["to_k", "to_qq"])
    assert "\n" not in str(error.value)
    assert "to_qq matches no module of UNet2DConditionModel" in str(error.value)
    assert "to_q" in str(error.value).split("nearest")[1]
    with pytest.raises(ValueError, match="to_out matches a ModuleList .* nearest are to_out.0"):
        LoraTuning(generator, targets=["to_k", "to_out"])


def test_targets_are_checked_from_configs_alone(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline(KIND), tmp_path / "configs")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    config = generator_config(KIND, folder)
    check_targets(config, ["to_q", "ff.net.2"])
    with pytest.raises(ValueError, match="to_qq matches no module of UNet2DConditionModel"):
        check_targets(config, ["to_q", "to_qq"])
    check_targets(generator_config(KIND, "nobody/nothing"), ["to_qq"])  # not in the cache: said on loading


def test_the_blocks_to_shard_are_some_that_the_model_has(generator):
    policy = LoraTuning(generator).policy
    assert policy._no_split_modules
    assert set(policy._no_split_modules) <= {type(module).__name__ for module in generator.model.modules()}
