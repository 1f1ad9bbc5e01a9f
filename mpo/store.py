"""Artifacts on disk, addressed by what they were made from. Imports no torch.

A stage's folder `<store>/<stage>-<hash>/` is named by a hash of the settings it depends on and of its inputs,
so runs that agree on these share it. Every file is written under a temporary name and renamed; `done.json` is
written last. A killed stage therefore leaves only whole files, and goes on from the shards it has.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.leases import leased

if TYPE_CHECKING:
    import torch

DONE = "done.json"
_HOST = socket.gethostname()  # two machines on one disk may have processes of the same number
_LITTLE = 1 << 16  # bytes: a disk with less is full
_WEIGHTS = (".safetensors", ".bin")  # of a model in the hub's cache, where it is there already
_SMALL = 64 << 20  # files above this many bytes are hashed once and remembered


def digest(value: Any) -> str:
    """16 hex digits that name `value` (JSON-like) by its content."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stable_seed(*parts: Any) -> int:
    """A seed in [0, 2^63) that depends on `parts` alone: not on the process, the batch or the order."""
    return int(hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16], 16) >> 1


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when it fails."""
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise the OSError of a full disk where torch and safetensors only say that they could not write."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if f"os error {errno.ENOSPC}" in str(error) or shutil.disk_usage(folder).free < _LITTLE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """`content` as the file `path`, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """`value` as readable JSON; NaN is refused, since JSON has none."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """`tensors` as safetensors. Serialised in memory, so that a full disk is an OSError as elsewhere."""
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: Mapping[str, str]) -> None:
    """`rows` as a parquet table; `schema` has each column's type by pyarrow's name, `list[...]` of it too."""
    import pyarrow
    from pyarrow import parquet

    types = {name: _arrow_type(kind) for name, kind in schema.items()}
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=pyarrow.schema(types.items()))
    with writing(path) as temporary:
        parquet.write_table(table, temporary)


def read_table(*paths: Path) -> list[dict[str, Any]]:
    """The rows of one or more parquet files, in order."""
    from pyarrow import parquet

    return [row for path in paths for row in parquet.read_table(path).to_pylist()]


def _arrow_type(kind: str) -> Any:
    import pyarrow

    if kind.startswith("list["):
        return pyarrow.list_(_arrow_type(kind[5:-1]))
    return pyarrow.type_for_alias(kind)


@contextmanager
def locked(path: Path, otherwise: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`; where another process holds it, wait, or raise BlockingIOError(`otherwise`).

    The kernel drops the lock with its process, so a killed one leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if otherwise:
                raise BlockingIOError(otherwise) from None
            print(f"waiting for {path.stem}, which another run is making", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Artifact:
    """One stage's folder in the store. `inputs` is what its name is a hash of."""

    folder: Path
    inputs: Mapping[str, Any]

    @classmethod
    def at(cls, store: Path, stage: str, inputs: Mapping[str, Any]) -> Artifact:
        return cls(store / f"{stage}-{digest(inputs)}", inputs)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def done(self) -> bool:
        return (self.folder / DONE).is_file()

    def facts(self) -> dict[str, Any]:
        """What the finished stage noted of itself."""
        return json.loads((self.folder / DONE).read_text())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one run that makes this artifact; other runs wait for it, on other machines too."""
        locks = self.folder.parent / "locks"
        with locked(locks / f"{self.name}.lock"), leased(locks / f"{self.name}.lease"):
            yield

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Note the inputs, sweep what killed processes left, and mark the folder complete with `facts`."""
        write_json(self.folder / "inputs.json", self.inputs)
        for leftover in self.folder.glob("**/.*.tmp"):
            leftover.unlink()
        write_json(self.folder / DONE, facts)

    def shard(self, kind: str, index: int) -> Path:
        suffix = "safetensors" if kind in ("latents", "conditioning") else "parquet"
        return self.folder / f"{kind}-{index:05d}.{suffix}"

    def shards(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-*.*"))


class Identities:
    """What the files of a model or a checklist are, by content: equal for equal files wherever they lie.

    Large files are hashed once; their digest is kept in `<store>/digests.json` under path, size and time.
    """

    def __init__(self, store: Path) -> None:
        self._path = store / "digests.json"
        self._known: dict[str, str] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def of(self, path: str, now: bool = True) -> str | None:
        """The identity of a file, a folder or a hub id.

        With `now=False` None where a large file was never hashed or a hub id is not in the local cache: then
        no artifact can have been made from it here.
        """
        local = Path(path)
        if local.is_file():
            return self._file(local, now)
        if local.is_dir():
            files = sorted(
                file for file in local.rglob("*") if file.is_file() and not file.name.startswith(".")
            )
            parts = {str(file.relative_to(local)): self._file(file, now) for file in files}
            return None if None in parts.values() else digest(parts)
        snapshot = hub_snapshot(path, online=now)
        return snapshot and f"{path}@{snapshot.name}"

    def _file(self, path: Path, now: bool) -> str | None:
        status = path.stat()
        if status.st_size <= _SMALL:
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in self._known and now:
            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._known)
        return self._known.get(key)


def hub_snapshot(path: str, online: bool, kind: str = "model") -> Path | None:
    """The local copy of a hub model or data set; when `online`, its newest commit, with its JSON files.

    None where there is no copy and `online` is False. FileNotFoundError for what is no model of the hub.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        options = {"repo_type": kind, "local_files_only": not online}
        snapshot = Path(snapshot_download(path, allow_patterns="*.json", **options))
    except HFValidationError:
        raise FileNotFoundError(f"{path}: no such file or folder") from None
    except LocalEntryNotFoundError as error:
        if not online:
            return None
        where = f"neither a folder here nor in the hub's cache {HF_HUB_CACHE}, and the hub did not answer"
        raise FileNotFoundError(f"{path}: {where}") from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        where = f"neither a folder here nor in the hub's cache {HF_HUB_CACHE}"
        raise FileNotFoundError(f"{path}: {where}, and the hub says: {reason}") from error
    if online and kind == "model" and not any(file.suffix in _WEIGHTS for file in snapshot.rglob("*")):
        try:  # the weights are still to come: better known now than after hours of sampling
            HfApi().model_info(path, timeout=10)
        except Exception as error:  # of the network's library too, which is the hub's own affair
            where = f"no weights in the hub's cache {HF_HUB_CACHE}, and the hub did not answer"
            raise FileNotFoundError(f"{path}: {where}") from error
    return snapshot
