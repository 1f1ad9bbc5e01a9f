"""Score cache: raw answers on disk, so that nothing is asked twice.

An entry is keyed by the content of the picture, the question as asked, and the judge's fingerprint (its
weights and template). It holds log-probabilities, before coding and weights: changing those costs nothing.
Failures are never stored.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

_BATCH = 500  # keys in one query; SQLite allows 999 parameters


class AnswerCache:
    """A table of `key -> (numbers)` in `folder/answers.sqlite`, shared by any number of processes.

    Answers are stored as (yes log-probability, no log-probability), features as (value,).
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "answers.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as db:
            db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, first REAL, second REAL)")

    @staticmethod
    def key(digest: str, question: str, fingerprint: str) -> str:
        """Key of one question about one picture, asked to one judge."""
        parts = (digest, fingerprint, question)
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=20).hexdigest()

    def get(self, keys: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """The entries that exist, by key."""
        found: dict[str, tuple[float, ...]] = {}
        unique = list(dict.fromkeys(keys))
        with self._connect() as db:
            for start in range(0, len(unique), _BATCH):
                part = unique[start : start + _BATCH]
                marks = ",".join("?" * len(part))
                rows = db.execute(f"SELECT key, first, second FROM answers WHERE key IN ({marks})", part)
                found.update((key, tuple(v for v in values if v is not None)) for key, *values in rows)
        return found

    def put(self, entries: Iterable[tuple[str, tuple[float, ...]]]) -> None:
        """Stores entries of one or two numbers each, all or none."""
        rows = [(key, values[0], values[1] if len(values) > 1 else None) for key, values in entries]
        with self._connect() as db:
            db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits and closes; opened anew each time, so that forked processes share
        nothing.
        """
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as db, db:
                yield db
        except sqlite3.Error as error:
            raise OSError(f"score cache {self.path}: {error}") from None
