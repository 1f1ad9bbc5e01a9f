"""Brings the release's question lists and weights to the user's cache, and checks that they are the ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from http.client import HTTPException, IncompleteRead
from pathlib import Path

from rewards.choice import check_choice

_SOURCE = "https://github.com/THUDM/VisionReward/raw/511960d"
# SHA-256 of the files, by their place in the release
_VIDEO = {
    "VisionReward-Video/VisionReward_video_qa.txt": (
        "58de7e00beb91aebfdf8043cce9f6780dd6609ad855d80be6f505e8885a70c2a"
    ),
    "VisionReward-Video/VisionReward_video_qa_select.txt": (
        "79de7f5e135a7957144826056a83be63fd6ddcbc61ba6460e09a0b09da580ee3"
    ),
    "VisionReward-Video/weight.json": "0c6367f244ae64fa881e93f0033f2a4362176893ed2f946223ec64a57e3c9204",
}
_IMAGE = {
    "VisionReward-Image/VisionReward_image_qa.txt": (
        "4433e6edd1e66f245a3db01422ddc7ff38eab154154bd03a599903359f6193f4"
    ),
    "VisionReward-Image/VisionReward_image_qa_select.txt": (
        "2b603df2f4e30fe8879d85e1bf38f30ad8292278b939e31bf88bf7cf9ff22c33"
    ),
    "VisionReward-Image/weight.json": "441b46093f5812ef78f290abd5c64d8ea088ed95d5e6f44fec413b276c2e5cc8",
    "VisionReward-Image/weight_select.json": (
        "4b60192fa96e0dda0c9101ed61141f89b85bb9669479e3b8eb42cc10611a68c9"
    ),
}
RELEASES = {"visionreward-video": _VIDEO, "visionreward-image": _IMAGE}


def fetch(name: str, source: str | Path | None = None) -> Path:
    """Brings a release's files to the user's cache, from the internet or from `source`; returns their folder.

    `source` may be a clone of the release or any folder above the files. Every file's SHA-256 is checked
    before anything is put in place.
    """
    check_choice("checklist", name, tuple(RELEASES))
    found = {}
    for place, digest in RELEASES[name].items():
        file = Path(place).name
        if source is None:
            where = f"{_SOURCE}/{place}"
            found[file] = _download(where)
        else:
            where, found[file] = _find(Path(source), file, digest)
        if _sha256(found[file]) != digest:
            raise ValueError(f"{where}: SHA-256 differs from the release's, {digest}")
    folder = cache_folder(name)
    staging = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    staging.mkdir(parents=True, exist_ok=True)
    for file, content in found.items():
        (staging / file).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return folder


def cache_folder(name: str) -> Path:
    """Where fetched files lie: $XDG_CACHE_HOME/mpo/checklists, by default under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mpo" / "checklists" / name


def fetched_folder(name: str) -> Path:
    """The folder of a fetched release; ValueError that says how to fetch it."""
    folder = cache_folder(name)
    if not folder.is_dir():
        raise ValueError(f"checklist {name}: not fetched yet; run: mpo checklist fetch {name}")
    return folder


def _find(source: Path, file: str, digest: str) -> tuple[Path, bytes]:
    """The file of that name under `source` with that hash, or the first of that name."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder")
    paths = sorted(source.rglob(file))
    if not paths:
        raise ValueError(f"{source}: no {file} in it")
    contents = [path.read_bytes() for path in paths]
    row = next((row for row, content in enumerate(contents) if _sha256(content) == digest), 0)
    return paths[row], contents[row]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except (OSError, HTTPException) as error:
        broken = isinstance(error, IncompleteRead)
        reason = "the connection broke off" if broken else getattr(error, "reason", error)
        raise ValueError(f"{url}: {reason}; on a machine without internet use --from FOLDER") from None
