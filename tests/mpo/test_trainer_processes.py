import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import one_process
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def outcome(folder):
    return json.loads((folder / "losses.json").read_text()), load_file(folder / "trained.safetensors")


def assert_same(folder, other, tolerance=1e-5):
    (losses, trained), (other_losses, other_trained) = outcome(folder), outcome(other)
    assert len(losses) == 4
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(other_losses), atol=tolerance, rtol=0)
    for name, parameter in other_trained.items():
        torch.testing.assert_close(trained[name], parameter, atol=4 * tolerance, rtol=0)


def test_two_processes_equal_one_and_one_goes_on_where_they_died(tiny_pipeline, tmp_path):
    pipeline = str(tiny_pipeline("stable_diffusion"))
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    one.mkdir(), two.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = [one_process.__file__, pipeline, str(two), "lora", "2", "4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command + program, env=environment, cwd=tmp_path, check=True, timeout=300)
    one_process.main(pipeline, one, "lora", micro=4, steps=4)
    assert_same(two, one)
    shutil.copytree(two / "checkpoint-2", resumed / "checkpoint-2")
    one_process.main(pipeline, resumed, "lora", micro=4, steps=4, resume=True)
    assert_same(resumed, one)
