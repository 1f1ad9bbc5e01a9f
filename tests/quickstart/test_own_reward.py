"""The commands of docs/own_reward.md, run as they stand there, with settings appended to make them small."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpo.cli import app
from rewards.checklist import Checklist

ROOT = Path(__file__).parents[2]
LOOP = """prompts.train_limit=3 prompts.heldout_limit=2 generate.candidates=5 generator.steps=3 train.steps=1
train.batch_size=2 train.micro_batch_size=2 evaluate.samples=1 evaluate.bootstrap=100 pairs.margin=0.01"""
SMALLER = {
    "annotate": "--pictures 100 --pairs 100 --test-pairs 40",
    "train-judge": "epochs=2 eval_steps=7",
    "fit-weights": "--resamples 20",
    "bench-reward": "--resamples 20",
    "plan": LOOP,
    "run": LOOP,
}


def commands(document: str) -> Iterator[tuple[str, str]]:
    """What the document's shell blocks do, in order: ("runs a line", the line), or (a file, its content)."""
    for block in re.findall(r"^```bash\n(.*?)^```", document, re.DOTALL | re.MULTILINE):
        lines = iter(block.splitlines())
        for line in lines:
            if written := re.fullmatch(r"cat > (\S+) <<'EOF'", line):
                content = takewhile(lambda text: text != "EOF", lines)
                yield written[1], "".join(f"{text}\n" for text in content)
            elif written := re.fullmatch(r"echo '(.*)' > (\S+)", line):
                yield written[2], f"{written[1]}\n"
            else:
                yield "", line


def run(line: str, monkeypatch) -> str:
    """Run a line of the document, made small; returns what it printed. No other kinds of line are known."""
    match shlex.split(line):
        case ["./launch.sh", *words]:
            name = words[0]
            result = CliRunner().invoke(app, [*words, *SMALLER.get(name, "").split()])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
            return result.output
        case ["PYTHONPATH=.", ".venv/bin/python", script, *words]:
            monkeypatch.setattr(sys, "argv", [script, *words, *SMALLER[Path(script).stem].split()])
            runpy.run_path(script)
            return ""
    pytest.fail(f"the tutorial has a line that its test cannot run: {line}")


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which every command of the tutorial has been run, and what each printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("quickstart", "configs"):
        (folder / name).symlink_to(ROOT / name)
    printed = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("COLUMNS", "200")
        for target, text in commands((ROOT / "docs" / "own_reward.md").read_text()):
            if target:
                Path(target).write_text(text)
            else:
                printed[text] = run(text, monkeypatch)
    return folder / "runs", printed


def test_the_judge_is_trained_on_our_questions(tutorial):
    """So few pictures show that it trains, not how well: half of the answers right is chance."""
    runs, _ = tutorial
    evaluation = json.loads((runs / "own" / "judge" / "evaluation.json").read_text())
    checklist = Checklist.from_yaml(runs / "own" / "own.yaml")
    assert set(evaluation["after"]["questions"]) == {question.text for question in checklist.questions}
    assert evaluation["after"]["balanced"] > 0.6 and evaluation["after"] != evaluation["before"]


def test_the_weights_are_learned_and_the_gate_has_none(tutorial):
    runs, _ = tutorial
    weights = {q.id: q.weight for q in Checklist.from_yaml(runs / "own" / "learned.yaml").questions}
    assert weights.keys() == {"object", "layout", "palette", "finish"}
    assert weights["object"] == 0 and sum(weights.values()) > 0


def test_the_benchmark_compares_three_rewards_on_all_test_pairs(tutorial):
    runs, _ = tutorial
    report = json.loads((runs / "own" / "benchmark.json").read_text())
    assert list(report["agreement"]) == ["untaught", "equal", "reward"]
    assert report["pairs"] == 40 and report["ties"] > 0


def test_the_generator_is_aligned_with_the_learned_reward(tutorial):
    runs, printed = tutorial
    evaluation = json.loads((runs / "aligned" / "evaluation.json").read_text())
    learned = Checklist.from_yaml(runs / "own" / "learned.yaml")
    assert list(evaluation["judge"]["dimensions"]) == list(learned.dimensions)
    assert (runs / "aligned" / "report.html").is_file()
    assert any(line.endswith("--until pair") for line in printed)
