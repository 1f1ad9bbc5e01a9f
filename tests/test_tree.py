"""The README's tree has a line for every file, and no line for what is not there."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHOLE = ("tests/", "quickstart/weights/", "quickstart/video/weights/")  # one line for all that lies below
UNNAMED = {"README.md", ".gitignore"}


def test_the_tree_in_the_readme_is_complete_and_true():
    command = ["git", "ls-files", "--cached"]  # what lies about beside them is the user's own
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = {name for name in found if (ROOT / name).is_file() and not name.startswith(WHOLE)}
    files = {name for name in files if not name.endswith("__init__.py") or (ROOT / name).stat().st_size}
    assert listed() == files - UNNAMED | set(WHOLE)


def listed() -> set[str]:
    """Every path in the tree, whose indented lines lie in the folder that stands above them."""
    text = (ROOT / "README.md").read_text().partition("<!-- tree: begin -->")[2]
    lines = text.partition("<!-- tree: end -->")[0].replace("```", "").splitlines()
    paths, folder = set(), ""
    for line in filter(str.strip, lines):
        name, *described = line.split()
        if not described:
            folder = name
            continue
        paths.add(folder + name if line.startswith(" ") else name)
    return paths
