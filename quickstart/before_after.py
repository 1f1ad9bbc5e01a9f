"""The README's pictures: `python -m quickstart.before_after runs/quickstart docs/quickstart.png`.

The first held-out prompts in their order, as the base model draws them and as the tuned one does from one
seed. A column a prompt, base above tuned; of clips a row a prompt, frame by frame, base to the left of tuned.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from quickstart.recipe import montage
from quickstart.video.world import FRAMES
from rewards.media import load_media


def samples(folder: Path, count: int) -> np.ndarray:
    """Return the first candidate of each of the first `count` prompts: uint8 [count, T, H, W, 3]."""
    tables = [parquet.read_table(table) for table in sorted(folder.glob("candidates*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    first = sorted((row for row in rows if row["candidate"] == 0), key=lambda row: row["prompt_id"])
    media = [load_media(folder / row["media"], f"uniform:{FRAMES}") for row in first[:count]]
    return np.stack([[np.asarray(picture) for picture in item.pictures()] for item in media])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=12, help="prompts")
    arguments = parser.parse_args()
    sides = [samples(arguments.run / "artifacts" / name, arguments.count) for name in ("base", "tuned")]
    frames = sides[0].shape[1]
    if frames == 1:
        sheet, columns = np.concatenate(sides), len(sides[0])
    else:
        gap = np.full_like(sides[0][:, :1], 255)
        sheet, columns = np.concatenate([sides[0], gap, sides[1]], axis=1), 2 * frames + 1
    montage(sheet.reshape(-1, *sheet.shape[-3:]), columns).save(arguments.out)
