"""The bundled configs, made small: the real generators, judges and oracles through all stages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = """prompts.train_limit=6 prompts.heldout_limit=6 generate.candidates=6 generator.steps=4
train.steps=2 train.batch_size=4 train.micro_batch_size=4 evaluate.samples=1
evaluate.bootstrap=200 pairs.margin=0.01""".split()


@pytest.fixture(scope="module", params=["quickstart", "quickstart_video"])
def run_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    places = [f"run_dir={folder / 'run'}", f"store={folder / 'store'}"]
    command = [sys.executable, "-m", "mpo", "run", f"configs/{request.param}.yaml", *SMALL, *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_evaluation_has_the_keys_that_readers_rely_on(run_folder):
    content = json.loads((run_folder / "evaluation.json").read_text())
    change = {"base", "tuned", "delta", "ci95"}
    for part in (content["judge"]["total"], content["oracle"]["share_right"]):
        assert change <= part.keys()
        low, high = part["ci95"]
        assert low <= part["delta"] <= high
        assert part["tuned"] - part["base"] == pytest.approx(part["delta"], abs=1e-9)
    for reward in ("judge", "oracle"):
        assert isinstance(content[reward]["regressions"], list)
        assert len(content[reward]["dimensions"]) >= 4
        for dimension in content[reward]["dimensions"].values():
            assert change | {"win", "tie", "loss"} <= dimension.keys()
            assert dimension["win"] + dimension["tie"] + dimension["loss"] == pytest.approx(1)
    assert 0.3 < content["oracle"]["share_right"]["base"] < 1
