"""The settings for several processes, as accelerate itself reads them; and what cannot be on a CPU."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from launching import ACCELERATE, variables

from mpo.processes import join

KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_settings(name):
    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "no"  # train.precision decides
    assert config.deepspeed_config.get("zero_stage") == (2 if name == "zero2" else None)


def test_every_file_of_settings_is_tested():
    assert {path.stem for path in ACCELERATE.glob("*.yaml")} == set(KINDS)


def test_what_the_launcher_tells_each_process():
    assert not any(name.startswith("FSDP") for name in variables("ddp"))
    told = variables("fsdp2")
    expected = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_OFFLOAD_PARAMS": "false",
    }
    assert {name: told[name] for name in expected} == expected


def test_deepspeed_without_a_gpu_is_one_line(monkeypatch):
    assert join("cpu").device.type == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="^DeepSpeed needs GPUs: use configs/accelerate/ddp.yaml or fsdp2.y"):
        join("cpu")
