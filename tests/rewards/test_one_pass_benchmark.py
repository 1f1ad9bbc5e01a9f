"""The arguments of benchmarks/one_pass_scoring.py; what it measures is looked at, not tested."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run(monkeypatch):
    """Runs it with such arguments over two names for nothing; returns what would have been measured."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("one_pass_scoring")
    measured = []
    judges = {name: (lambda name=name: (name, None), (5, 10), 10, None) for name in ("one", "two")}
    monkeypatch.setattr(module, "JUDGES", judges)
    monkeypatch.setattr(module, "compare", lambda judge, media, sizes, *_: measured.append((judge, sizes)))
    monkeypatch.setattr(module.torch, "set_num_threads", lambda count: None)

    def main(*arguments: str) -> list:
        monkeypatch.setattr(sys, "argv", ["one_pass_scoring.py", *arguments])
        module.main()
        return measured

    return main


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        ([], [("one", (5, 10)), ("two", (5, 10))]),
        (["all"], [("one", (5, 10)), ("two", (5, 10))]),
        (["two", "--questions", "1", "64"], [("two", (1, 64))]),
    ],
)
def test_what_is_named_is_measured(arguments, measured, run):
    assert run(*arguments) == measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["twoo"], "invalid choice: 'twoo' (choose from "),
        (["two", "--questions", "0"], "--questions: invalid choice: 0 (choose from 1, 2, "),
        (["two", "--questions", "65"], "--questions: invalid choice: 65 (choose from 1, 2, "),
    ],
)
def test_what_is_not_there_is_one_line(arguments, message, run, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err
