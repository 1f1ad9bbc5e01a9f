"""The README's picture: `python -m quickstart.before_after runs/quickstart docs/quickstart.png`.

A column a held-out prompt, the first ones in their order: above as the base model draws it, below as the
tuned one does from the same seed.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

from quickstart.recipe import montage


def pictures(samples: Path, count: int) -> np.ndarray:
    """Return the first candidate of each of the first `count` prompts: uint8 [count, 64, 64, 3]."""
    tables = [parquet.read_table(table) for table in sorted(samples.glob("candidates*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    first = sorted((row for row in rows if row["candidate"] == 0), key=lambda row: row["prompt_id"])
    return np.stack([np.asarray(Image.open(samples / row["media"]).convert("RGB")) for row in first[:count]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=12, help="prompts")
    arguments = parser.parse_args()
    sides = [pictures(arguments.run / "artifacts" / name, arguments.count) for name in ("base", "tuned")]
    montage(np.concatenate(sides), columns=arguments.count, scale=2).save(arguments.out)
