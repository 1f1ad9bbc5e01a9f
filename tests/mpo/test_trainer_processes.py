"""One process, two that hold the whole model (DDP) and two that hold half of it each (FSDP2) train alike."""

import json
import shutil
import signal
from functools import cache

import one_process
import pytest
import torch
from killing import together
from launching import variables
from safetensors.torch import load_file

WAYS = ("ddp", "fsdp2")  # of configs/accelerate/


def start_two(way, *arguments):
    """Exit codes of two processes that train together."""
    told = {name: value for name, value in variables(way).items() if "FSDP" in name}  # none of it for DDP
    processes = together(one_process.run, arguments, arguments, **told)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def outcome(folder):
    result = {
        name: tensor
        for file in (folder / "result").rglob("*.safetensors")
        if "vae" not in file.parts and "text_encoder" not in file.parts
        for name, tensor in load_file(file).items()
    }
    return json.loads((folder / "losses.json").read_text()), result


@pytest.fixture(scope="module")
def straight(tiny_pipeline, tmp_path_factory):
    """The losses and weights of one process that is not killed; trained once for all ways."""

    @cache
    def trained(family, mode):
        folder = tmp_path_factory.mktemp("straight")
        one_process.main(family, str(tiny_pipeline(family)), folder, mode, micro=4)
        return outcome(folder)

    return trained


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("family", "mode"), [("stable_diffusion", "lora"), ("wan", "full")])
def test_killed_with_two_processes_and_resumed_with_two_or_one_equals_one(
    tiny_pipeline, straight, tmp_path, way, family, mode
):
    pipeline, killed = str(tiny_pipeline(family)), tmp_path / "killed"
    expected, expected_trained = straight(family, mode)
    codes = start_two(way, family, pipeline, killed, mode, 2, 3)
    assert -signal.SIGKILL in codes and 0 not in codes  # the other may see it die first
    assert not (killed / "result").exists()
    for processes in (1, 2):
        resumed = tmp_path / f"resumed-{processes}"
        shutil.copytree(killed, resumed)
        if processes == 2:
            assert start_two(way, family, pipeline, resumed, mode, 2) == [0, 0]
        else:
            one_process.main(family, pipeline, resumed, mode, micro=4)
        report, trained = outcome(resumed)
        assert len(expected["losses"]) == 4 and len(set(expected["losses"])) == 4
        assert report["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert report["delta"] == pytest.approx(expected["delta"], rel=1e-3) and report["delta"] > 0
        assert trained.keys() == expected_trained.keys() and len(trained) > 8
        for name, parameter in expected_trained.items():
            torch.testing.assert_close(trained[name], parameter, atol=4e-5, rtol=0)
        shares = report["held"]  # of the policy, and of the reference where that is another model
        assert len(shares) == (1 if mode == "lora" else 2)
        if (way, processes) == ("fsdp2", 2):
            assert shares == pytest.approx([0.5] * len(shares), abs=0.1)
        else:
            assert shares == [1] * len(shares)
