"""Which package may import which (CONTRIBUTING.md): one direction, from models to preferences."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"generators", "rewards", "mpo", "quickstart"}
ALLOWED = {
    "generators": {"generators"},
    "rewards": {"rewards"},
    "quickstart": {"quickstart", "generators", "rewards"},
    "mpo": OURS,
}
PURE = (  # modules of mpo
    *("objectives", "dominance", "rules", "draws", "pairs", "yields"),
    *("losses", "preference_loss", "selection", "significance", "statistics"),
)


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.partition(".")[0] in OURS}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_lies_below_them(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        names = ours(file) - ({"mpo.config"} if package == "quickstart" else set())  # it imports none of ours
        packages = {name.partition(".")[0] for name in names}
        assert packages <= ALLOWED[package], f"{file.relative_to(ROOT)} imports {packages - ALLOWED[package]}"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_no_model_and_no_file(module):
    found = ours(ROOT / "mpo" / f"{module}.py") - {"mpo.config"} - {f"mpo.{name}" for name in PURE}
    assert not found, f"mpo/{module}.py imports {sorted(found)}"


def test_generator_and_reward_meet_in_the_pipeline_alone():
    both = {
        file.stem
        for file in (ROOT / "mpo").glob("*.py")
        if {"generators", "rewards"} <= {name.partition(".")[0] for name in ours(file)}
    }
    assert both <= {"pipeline", "models", "evaluate"}


def test_schedules_are_pure():
    assert ours(ROOT / "generators" / "schedules.py") == set()
