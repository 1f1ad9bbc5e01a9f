"""Samples on disk: what the generate stage writes, and what training reads of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor

from generators.base import Conditioning
from generators.saving import SUFFIX, save_media
from mpo.preference_data import PreferencePairs
from mpo.store import Artifact, read_table, stable_seed, write_table, write_tensors, writing

if TYPE_CHECKING:
    from generators.base import Generator

_COLUMNS = {
    "prompt_id": "int64",
    "prompt": "string",
    "candidate": "int64",
    "seed": "int64",
    "media": "string",
}


def sample_shard(
    artifact: Artifact,
    index: int,
    prompts: Mapping[int, str],
    generator: Generator,
    batch_size: int,
    encoded: Artifact | None = None,
) -> None:
    """Write shard `index`: the samples of `prompts` (number -> text). Its table comes last.

    The conditioning is that of `encoded`, samples of the same prompts that are there already, if given.
    """
    seed, samples = artifact.inputs["seed"], artifact.inputs["samples"]
    rows = [
        {
            "prompt_id": number,
            "prompt": prompt,
            "candidate": candidate,
            "seed": stable_seed(*seed, prompt, candidate),
            "media": f"media/{number:06d}-{candidate:02d}{SUFFIX[generator.modality]}",
        }
        for number, prompt in prompts.items()
        for candidate in range(samples)
    ]
    if encoded:
        conditioning = StoredSamples(encoded).rows(list(prompts))
    else:
        conditioning = generator.encode_prompts(list(prompts.values()))
    repeated = conditioning.rows([row // samples for row in range(len(rows))])
    sampled = generator.sample(repeated, [row["seed"] for row in rows], batch_size)
    (artifact.folder / "media").mkdir(exist_ok=True)
    for row, medium in zip(rows, sampled.media, strict=True):
        with writing(artifact.folder / row["media"]) as temporary:
            save_media(medium, temporary, generator.frame_rate)
    write_tensors(artifact.shard("conditioning", index), conditioning.tensors)
    write_tensors(artifact.shard("latents", index), {"latents": sampled.latents})
    write_table(artifact.shard("candidates", index), rows, _COLUMNS)


class StoredSamples:
    """Latents and conditioning of a `generate` artifact, read from its shards row by row.

    Row r of the latents is candidate r % samples of prompt r // samples; row p of the conditioning is that of
    prompt p.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.samples, self._size = artifact.inputs["samples"], artifact.inputs["shard_size"]
        self._open = lru_cache(maxsize=64)(self._open_shard)

    def __getitem__(self, row: int) -> Tensor:
        shard, place = divmod(row, self._size * self.samples)
        return self._open("latents", shard).get_slice("latents")[place]

    def rows(self, index: Sequence[int]) -> Conditioning:
        return Conditioning.cat([self._prompt(prompt) for prompt in index])

    def _prompt(self, prompt: int) -> Conditioning:
        shard, place = divmod(prompt, self._size)
        tensors = self._open("conditioning", shard)
        return Conditioning({name: tensors.get_slice(name)[place : place + 1] for name in tensors.keys()})

    def _open_shard(self, kind: str, index: int) -> Any:
        return safe_open(self.artifact.shard(kind, index), framework="pt")


def preference_pairs(candidates: Artifact, pairs: Artifact) -> PreferencePairs:
    """The pairs of the artifact `pairs` over the stored samples of `candidates`."""
    stored = StoredSamples(candidates)
    rows = read_table(pairs.folder / "pairs.parquet")
    media = {
        (row["prompt_id"], row["candidate"]): row["media"]
        for row in read_table(*candidates.shards("candidates"))
    }
    return PreferencePairs(
        latents=stored,
        conditioning=stored,
        winner=[row["prompt_id"] * stored.samples + row["winner"] for row in rows],
        loser=[row["prompt_id"] * stored.samples + row["loser"] for row in rows],
        prompt=[row["prompt_id"] for row in rows],
        names=[
            " > ".join(media[row["prompt_id"], row[side]] for side in ("winner", "loser")) for row in rows
        ],
        gap=[row["gap"] for row in rows],
        folder=str(candidates.folder),
    )
