"""Leases: what keeps machines that share a disk from making the same thing at the same time.

Within one machine the kernel's file locks are exact and end with their process; `mpo.store.locked` takes one
first. Across machines some shared file systems keep them for each machine by itself. A lease is therefore a
symbolic link, which every one of them, NFS too, makes whole or not at all; its target names the holder, who
renews the link's time. What was not renewed for a while belongs to a machine that is gone, and is taken over.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RENEWED = 20.0  # seconds between renewals
EXPIRES = 300.0  # seconds without one after which a lease of another machine counts for nothing
_POLL = 5.0  # seconds between looks at a lease that another machine holds
_SETTLE = 1.0  # seconds in which others that took over the same lease would show


def _kernel() -> str:
    """What is equal exactly where file locks are shared: the running kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


@contextmanager
def leased(path: Path, kernel: str | None = None) -> Iterator[None]:
    """Hold the lease `path`, waiting while another machine does. The caller holds the machine's own lock."""
    kernel = kernel or _kernel()
    holder = f"{kernel}:{os.getpid()}:{secrets.token_hex(8)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while not _taken(path, holder, kernel):
        if not told:
            print(f"waiting for {path.stem}, which another machine is making", file=sys.stderr)
        told = True
        time.sleep(_POLL)
    ended = threading.Event()
    keeper = threading.Thread(target=_renew, args=(path, holder, ended), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with suppress(OSError):
            if os.readlink(path) == holder:
                path.unlink()


def _taken(path: Path, holder: str, kernel: str) -> bool:
    """Whether the lease is now `holder`'s."""
    with suppress(FileExistsError):
        os.symlink(holder, path)
        return True
    try:
        other = os.readlink(path)
        ours = other.startswith(f"{kernel}:")  # left by a killed process, since we have the machine's lock
        if not (ours or _age(path) > EXPIRES) or not _removed(path, other):
            return False
        os.symlink(holder, path)
        if not ours:
            time.sleep(_SETTLE)
        return os.readlink(path) == holder
    except (FileNotFoundError, FileExistsError):
        return False  # given back, or taken, just now


def _removed(path: Path, other: str) -> bool:
    """Take the lease of `other` away; False where it has become someone else's meanwhile."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    found = os.readlink(aside)
    if found != other:
        with suppress(FileExistsError):
            os.symlink(found, path)
    aside.unlink()
    return found == other


def _age(path: Path) -> float:
    """Seconds since the lease was renewed, by the clock of the disk's server, which all machines share."""
    probe = path.with_name(f".clock.{secrets.token_hex(8)}.tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.lstat().st_mtime
    finally:
        probe.unlink()


def _renew(path: Path, holder: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWED):
        with suppress(OSError):  # a disk that does not answer for a moment
            if os.readlink(path) == holder:
                os.utime(path, follow_symlinks=False)
