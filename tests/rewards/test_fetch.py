"""Fetching the release's files from a server on this machine that stands in for GitHub."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rewards import fetch as module
from rewards.fetch import RELEASES, cache_folder, fetch

NAME = "visionreward-video"
CONTENT = {place: f"made-up content of {place}\n".encode() for place in RELEASES[NAME]}
LAST = list(CONTENT)[-1]


class GitHub(HTTPServer):
    """Sends `content` by path, and says that `missing` more bytes would follow; or hangs up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.content = dict(CONTENT)
        self.missing = 0
        self.hangs_up = False


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.hangs_up:
            return
        content = self.server.content.get("/".join(self.path.split("/")[-2:]))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.missing))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def github(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    digests = {place: hashlib.sha256(content).hexdigest() for place, content in CONTENT.items()}
    monkeypatch.setitem(RELEASES, NAME, digests)
    with GitHub() as server:
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(module, "_SOURCE", module._SOURCE.replace("https://github.com", here))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_every_file_comes_from_the_pinned_commit(github):
    folder = fetch(NAME)
    assert github.asked == [f"/THUDM/VisionReward/raw/511960d/{place}" for place in CONTENT]
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {Path(place).name: content for place, content in CONTENT.items()}
    assert list(cache_folder(NAME).parent.iterdir()) == [folder]


@pytest.mark.parametrize("before", ["nothing", "a whole release"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("altered", "SHA-256 differs from the release's, [0-9a-f]{64}$"),
        ("absent", "Not Found; on a machine without internet use --from FOLDER$"),
        ("no answer", "Remote end closed connection .*; on a machine without internet use --from FOLDER$"),
        ("cut", "the connection broke off; on a machine without internet use --from FOLDER$"),
    ],
)
def test_what_went_wrong_is_one_line_and_leaves_nothing(fault, reason, before, github, tmp_path):
    if before != "nothing":
        fetch(NAME)
    there = sorted(path for path in tmp_path.rglob("*"))
    match fault:
        case "altered":
            github.content[LAST] += b" "
        case "absent":
            del github.content[LAST]
        case "no answer":
            github.hangs_up = True
        case "cut":
            github.missing = 7
    with pytest.raises(ValueError, match=rf"/511960d/\S+: {reason}") as caught:
        fetch(NAME)
    assert "\n" not in str(caught.value)
    assert sorted(path for path in tmp_path.rglob("*")) == there
    if before != "nothing":
        assert (cache_folder(NAME) / Path(LAST).name).read_bytes() == CONTENT[LAST]
