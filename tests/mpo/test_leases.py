import os
import threading
import time

import pytest

from mpo import leases
from mpo.leases import leased


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "_POLL", 0.01)
    monkeypatch.setattr(leases, "_SETTLE", 0.0)


def test_a_machine_waits_for_another_and_goes_on_when_that_gives_the_lease_back(tmp_path, capsys):
    path, order = tmp_path / "a.lease", []

    def other():
        with leased(path, kernel="two"):
            order.append("two")

    thread = threading.Thread(target=other)
    with leased(path, kernel="one"):
        thread.start()
        while "waiting for a, which another machine is making" not in capsys.readouterr().err:
            thread.join(0.01)
        order.append("one")
    thread.join()
    assert order == ["one", "two"]
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_of_this_machine_left_is_taken_at_once(tmp_path):
    (tmp_path / "a.lease").symlink_to("here:1:dead")
    with leased(tmp_path / "a.lease", kernel="here"):
        assert os.readlink(tmp_path / "a.lease").startswith(f"here:{os.getpid()}:")
    assert not os.listdir(tmp_path)


def test_another_machines_lease_is_taken_when_it_was_not_renewed(tmp_path, monkeypatch):
    path = tmp_path / "a.lease"
    path.symlink_to("elsewhere:1:gone")
    assert not leases._taken(path, "here:2:new", "here")  # renewed just now
    old = time.time() - leases.EXPIRES - 1
    os.utime(path, (old, old), follow_symlinks=False)
    assert leases._taken(path, "here:2:new", "here")
    assert os.readlink(path) == "here:2:new"


def test_a_lease_that_changed_hands_meanwhile_is_put_back(tmp_path):
    """Two machines find a lease expired; the slower must not take away what the faster has made since."""
    path = tmp_path / "a.lease"
    path.symlink_to("fast:1:new")
    assert not leases._removed(path, "elsewhere:1:gone")
    assert os.readlink(path) == "fast:1:new"
    assert os.listdir(tmp_path) == ["a.lease"]


def test_a_lease_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED", 0.01)
    path = tmp_path / "a.lease"
    with leased(path, kernel="here"):
        os.utime(path, (1, 1), follow_symlinks=False)
        for _ in range(1000):
            if leases._age(path) < 60:
                break
            threading.Event().wait(0.01)
        assert leases._age(path) < 60
