"""Reads checkpoints of SwissArmyTransformer (SAT) tensor by tensor, also inside a tar that is cut in parts.

Nothing is unpacked: a checkpoint is a zip, whose index says where each tensor lies, and the parts of a tar
read as one file. So memory holds what is asked for, and the disk needs no second copy.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import tarfile
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

# Training leaves the state of its random numbers beside the weights, an array of NumPy 1 or 2: no code.
_REBUILD = np.empty(0).__reduce__()[0]
_ARRAYS = [
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (_REBUILD, "numpy.core.multiarray._reconstruct"),
    (_REBUILD, "numpy._core.multiarray._reconstruct"),
]


class SATCheckpoint:
    """An open checkpoint: `config` is its model_config.json, `tensors` its weights without their values."""

    def __init__(self, name: str, config: dict, file: BinaryIO):
        self.name = name
        self.config = config
        self.file = file
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{name}: not a checkpoint of torch 1.6 or later, or damaged")
        # The archive lists a checksum of every tensor; together they tell one checkpoint from another.
        records = [(record.filename, record.CRC) for record in zipfile.ZipFile(file).infolist()]
        self.digest = hashlib.sha256(repr(sorted(records)).encode()).hexdigest()
        file.seek(0)
        try:
            # The fake mode reads names, shapes and places alone.
            with FakeTensorMode(), torch.serialization.safe_globals(_ARRAYS):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            other = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
            if other:  # torch's own text tells how to run the code in it
                raise ValueError(f"{name}: holds more than numbers ({other[1]}), so it is not read") from None
            raise ValueError(f"{name}: {' '.join(str(error).split())[:300]}") from None
        if not isinstance(content, dict) or "module" not in content:
            raise ValueError(f"{name}: no weights under 'module'; it holds {', '.join(map(str, content))}")
        self.tensors: dict[str, Tensor] = content["module"]

    def read(self, name: str) -> Tensor:
        """One tensor with its values."""
        fake = self.tensors[name]
        storage = fake.untyped_storage()
        start, size = storage._checkpoint_offset, storage.nbytes()
        offset = fake.storage_offset()
        if fake.is_contiguous():  # a slice of what may be one buffer for many tensors
            start, size, offset = start + offset * fake.itemsize, fake.numel() * fake.itemsize, 0
        self.file.seek(start)
        values = bytearray(size)
        if self.file.readinto(values) != size:
            raise ValueError(f"{self.name}: ends within {name}")
        return torch.frombuffer(values, dtype=fake.dtype).as_strided(fake.shape, fake.stride(), offset)


@contextmanager
def open_sat(source: str | Path | Sequence[str | Path]) -> Iterator[SATCheckpoint]:
    """The checkpoint in a folder, a tar, or the parts of a tar (`split_part_*`, given or in a folder).

    A checkpoint is `latest`, which names a folder, `model_config.json`, and that folder's weights.
    FileNotFoundError where one of them is not there, or several are; ValueError for a damaged one.
    """
    paths = [Path(source)] if isinstance(source, str | Path) else sorted(map(Path, source))
    label = " … ".join(str(path) for path in dict.fromkeys((paths[0], paths[-1])))
    with ExitStack() as stack:
        files = _files(paths, label, stack)
        latest = _only(label, [name for name in files if name.split("/")[-1] == "latest"])
        base = latest.removesuffix("latest")
        iteration = _text(files, label, latest).strip()
        parts = sorted(name for name in files if name.startswith(f"{base}{iteration}/mp_rank_"))
        name = _only(f"{label}/{latest} names {iteration!r}", parts)
        if f"{base}model_config.json" not in files:
            raise FileNotFoundError(f"{label}: no model_config.json beside {latest}")
        config = _config(files, label, f"{base}model_config.json")
        weights = stack.enter_context(files[name]())
        yield SATCheckpoint(f"{label}/{name}", config, weights)


def _text(files: dict[str, Callable[[], BinaryIO]], label: str, name: str) -> str:
    with files[name]() as file:
        try:
            return file.read().decode()
        except UnicodeDecodeError:
            raise ValueError(f"{label}/{name}: damaged, it is not text") from None


def _config(files: dict[str, Callable[[], BinaryIO]], label: str, name: str) -> dict:
    try:
        config = json.loads(_text(files, label, name))
    except json.JSONDecodeError as error:
        raise ValueError(f"{label}/{name}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{label}/{name}: {type(config).__name__} given, needed an object")
    return config


def _only(where: str, names: list[str]) -> str:
    if len(names) != 1:
        found = ", ".join(names) or "nothing"
        raise FileNotFoundError(
            f"{where}: needed one SAT checkpoint that is not split over processes, found {found}"
        )
    return names[0]


def _files(paths: list[Path], label: str, stack: ExitStack) -> dict[str, Callable[[], BinaryIO]]:
    """Names of the files in a folder or a tar, each with what opens it."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if len(paths) == 1 and paths[0].is_dir():
        root = paths[0]
        parts = sorted(root.rglob("split_part_*"))
        if not parts:
            found = (path for path in root.rglob("*") if path.is_file())
            return {path.relative_to(root).as_posix(): lambda path=path: path.open("rb") for path in found}
        paths = parts
    joined = stack.enter_context(io.BufferedReader(JoinedFiles(paths)))
    try:
        tar = stack.enter_context(tarfile.open(fileobj=joined, mode="r:"))
        members = [member for member in tar.getmembers() if member.isfile()]
    except tarfile.TarError as error:
        raise ValueError(
            f"{label}: not a whole uncompressed tar ({error}); are all its parts there?"
        ) from None
    return {member.name: lambda member=member: tar.extractfile(member) for member in members}


class JoinedFiles(io.RawIOBase):
    """Files, one after the other, as a single seekable one."""

    def __init__(self, paths: Sequence[Path]):
        self.files = [path.open("rb") for path in paths]
        self.ends = list(accumulate(path.stat().st_size for path in paths))
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.ends[-1]}[whence]
        self.place = max(0, origin + offset)
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer) -> int:
        """At most to the end of the current file."""
        number = bisect_right(self.ends, self.place)
        if number == len(self.files):
            return 0
        file = self.files[number]
        file.seek(self.place - (self.ends[number - 1] if number else 0))
        count = file.readinto(buffer)
        self.place += count
        return count

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()
