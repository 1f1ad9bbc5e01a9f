"""launch.sh with a stand-in for Python: when it installs, when it does not, and what it runs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$*" in
    *"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"-m pip install"*) exit "${PIP_EXIT:-0}" ;;
    *get_num_threads*) echo 2 ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """Runs a copy of launch.sh; returns the exit code, stderr, and what the stand-in was called with."""
    shutil.copy(ROOT / "launch.sh", tmp_path)
    (tmp_path / "requirements.lock").write_text("typer==1\n")
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    calls = tmp_path / "calls"

    def run(*words: str, **environment: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        settings = {"CALLS": str(calls), "MPO_PYTHON": str(stand_in)} | environment
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MPO", "OMP"))}
        done = subprocess.run(
            [tmp_path / "launch.sh", *words], env=clean | settings, capture_output=True, text=True, cwd="/"
        )
        return done.returncode, done.stderr, calls.read_text().splitlines()

    run.folder = tmp_path
    return run


def installs(calls: list[str]) -> bool:
    return any("pip install" in call for call in calls)


def test_the_first_start_installs_and_the_second_does_not(launch):
    code, _, calls = launch("plan", "x.yaml")
    assert code == 0
    assert installs(calls)
    assert calls[-1] == "-m mpo plan x.yaml"
    assert launch("plan", "x.yaml")[2] == ["-c ", "-m mpo plan x.yaml"]


def test_a_changed_lock_installs_again(launch):
    launch("--help")
    (launch.folder / "requirements.lock").write_text("typer==2\n")
    assert installs(launch("--help")[2])
    assert not installs(launch("--help")[2])


def test_a_broken_off_installation_is_made_anew(launch):
    code, _, calls = launch("--help", PIP_EXIT="1")
    assert code != 0
    assert not any("-m mpo" in call for call in calls)
    assert installs(launch("--help")[2])


def test_words_become_commands(launch):
    launch("--help")
    assert launch()[2][-1] == "-m mpo run configs/quickstart.yaml"
    assert launch("test", "-k", "two words")[2][-1] == "-m pytest -k two words"
    assert launch("test")[2][-1] == "-m pytest"


def test_several_processes_go_through_accelerate(launch):
    launch("--help")
    last = launch("run", "x.yaml", MPO_PROCESSES="2")[2][-1]
    assert last.startswith("-m accelerate.commands.launch --multi_gpu ")
    assert " --num_processes 2 --num_machines 1 " in last
    assert last.endswith("--module mpo run x.yaml")
    assert " --module mpo train-judge j.yaml" in launch("train-judge", "j.yaml", MPO_PROCESSES="2")[2][-1]
    for one in (["plan", "x.yaml"], ["show", "x"], ["ablate", "a.yaml"], ["--help"]):
        several = {"MPO_PROCESSES": "2", "MPO_NODES": "2"}
        assert launch(*one, **several)[2][-1] == f"-m mpo {' '.join(one)}"
    assert launch("run", "x.yaml", MPO_PROCESSES="1")[2][-1] == "-m mpo run x.yaml"
    for wrong in ("0", "two", "-1"):
        code, err, _ = launch("run", MPO_PROCESSES=wrong)
        assert (code, err) == (2, f"launch.sh: MPO_PROCESSES={wrong}: must be a whole number from 1\n")


def test_settings_of_accelerate_and_several_machines(launch):
    launch("--help")
    (launch.folder / "fsdp2.yaml").write_text("distributed_type: FSDP\n")
    two = {"MPO_ACCELERATE": "fsdp2.yaml", "MPO_PROCESSES": "2"}
    last = launch("run", "x.yaml", **two)[2][-1]
    assert last.startswith("-m accelerate.commands.launch --config_file fsdp2.yaml --main_process_port 0 ")
    assert " --num_processes 2 --num_machines 1 " in last and "--multi_gpu" not in last
    several = two | {"MPO_NODES": "3", "MPO_NODE": "2", "MPO_MAIN": "node0:29500"}
    last = launch("run", "x.yaml", **several)[2][-1]
    assert " --machine_rank 2 --main_process_ip node0 --main_process_port 29500 " in last
    assert " --num_processes 6 --num_machines 3 " in last
    for change, refusal in (
        ({"MPO_ACCELERATE": "no.yaml"}, "MPO_ACCELERATE=no.yaml: no such file"),
        ({"MPO_NODE": "3"}, "MPO_NODE=3: must be less than MPO_NODES=3"),
        ({"MPO_NODE": ""}, "MPO_NODE=: must be a whole number from 0"),
        ({"MPO_MAIN": "node0"}, "MPO_MAIN=node0: must be HOST:PORT"),
    ):
        code, err, _ = launch("run", "x.yaml", **several | change)
        assert code == 2 and err.startswith(f"launch.sh: {refusal}") and len(err.splitlines()) == 1


def test_no_python_is_one_line(launch):
    code, err, _ = launch("--help", MPO_PYTHON="/nowhere/python")
    assert code == 2
    assert err.startswith("launch.sh: needs Python 3.11 or newer")
    assert len(err.splitlines()) == 1
