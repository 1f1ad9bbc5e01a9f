"""Preference data from elsewhere as candidates with latents: a pair's winner is candidate 0, its loser 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mpo.foreign_pairs import BadRow, ForeignPairs, Medium
from mpo.store import Artifact, read_table, write_bytes, write_json, write_table, write_tensors
from rewards.media import load_media

_TABLE = {"prompt_id": "int64", "prompt": "string", "candidate": "int64", "seed": "int64", "media": "string"}
_SKIPPED = {"row": "int64", "reason": "string"}


class Encoder(Protocol):
    """What is asked of a generator here."""

    family: str
    modality: str
    frame_count: int  # of a sample; 1 for a picture

    def encode(self, media: list[Any]) -> torch.Tensor: ...

    def encode_prompts(self, prompts: list[str]) -> Any: ...


def foreign_shard(
    artifact: Artifact, index: int, pairs: ForeignPairs, members: Sequence[int], generator: Encoder
) -> None:
    """Write shard `index`, the pairs `members`: latents, conditioning, media, and last their table.

    A pair whose media cannot be used is not in the table but, with the reason, among the skipped.
    """
    (artifact.folder / "media").mkdir(exist_ok=True)
    latents: dict[int, torch.Tensor] = {}
    table, skipped = [], []
    for place, pair in enumerate(members):
        try:
            media = pairs.media(pair)
            contents = [medium.content() for medium in media]
            if contents[0] == contents[1]:
                raise BadRow(f"{media[0].name} and {media[1].name} are the same")
            taken = [
                _take(artifact, f"{pair:06d}-{candidate:02d}", medium, content, generator)
                for candidate, (medium, content) in enumerate(zip(media, contents, strict=True))
            ]
        except ValueError as error:
            skipped.append({"row": pairs.rows[pair], "reason": str(error)})
            continue
        for candidate, (name, latent) in enumerate(taken):
            latents[2 * place + candidate] = latent
            table.append(
                {
                    "prompt_id": pair,
                    "prompt": pairs.prompts[pair],
                    "candidate": candidate,
                    "seed": 0,
                    "media": name,
                }
            )
    nothing = torch.zeros_like(next(iter(latents.values()))) if latents else torch.zeros(1)
    stacked = torch.stack([latents.get(row, nothing) for row in range(2 * len(members))])
    conditioning = generator.encode_prompts([pairs.prompts[pair] for pair in members])
    write_tensors(artifact.shard("conditioning", index), conditioning.tensors)
    write_tensors(artifact.shard("latents", index), {"latents": stacked})
    write_table(artifact.shard("skipped", index), skipped, _SKIPPED)
    write_table(artifact.shard("candidates", index), table, _TABLE)


def _take(
    artifact: Artifact, stem: str, medium: Medium, content: bytes, generator: Encoder
) -> tuple[str, torch.Tensor]:
    """Lay a file's content into the artifact, whatever its format; its name there, and its latents [...]."""
    otherwise = ".jpg" if generator.modality == "image" else ".mp4"
    name = f"media/{stem}{medium.file.suffix if isinstance(medium.file, Path) else otherwise}"
    path = artifact.folder / name
    write_bytes(path, content)
    try:
        media = load_media(path, f"first:{generator.frame_count}")
        if media.kind != generator.modality:
            raise BadRow(f"{media.kind}, but {generator.family} makes {generator.modality}s")
        return name, generator.encode([media.image if media.kind == "image" else media.frames])[0]
    except ValueError as error:  # which may name the copy
        raise BadRow(f"{medium.name}: {str(error).removeprefix(f'{path}: ')}") from error


def refuse_bad(artifact: Artifact, pairs: ForeignPairs, source: str, allowed: float) -> dict[int, str]:
    """The bad rows known so far, and why, also listed in skipped.json.

    ValueError where they are more than the share `allowed` of all that are no ties.
    """
    bad = dict(pairs.bad)
    bad |= {row["row"]: row["reason"] for row in read_table(*artifact.shards("skipped"))}
    write_json(artifact.folder / "skipped.json", {str(row): bad[row] for row in sorted(bad)})
    total = len(pairs.rows) + len(pairs.bad)
    if len(bad) == total or len(bad) > allowed * total:
        raise ValueError(
            f"pairs.from = {source!r}: {len(bad)} of {total} rows cannot be used, "
            f"pairs.allow_bad = {allowed:g} of them may be; {_listed(artifact, bad)}"
        )
    return bad


def brought(artifact: Artifact, pairs: ForeignPairs, source: str, allowed: float) -> dict[str, int]:
    """What is to be noted of the pairs when all are encoded; errors as of `refuse_bad`."""
    bad = refuse_bad(artifact, pairs, source, allowed)
    total = len(pairs.rows) + len(pairs.bad)
    if bad:
        print(f"{source}: {len(bad)} of {total} rows left out: {_listed(artifact, bad)}")
    return {"prompts": total - len(bad), "samples": 2 * (total - len(bad)), "ties": pairs.ties}


def _listed(artifact: Artifact, bad: dict[int, str]) -> str:
    first = "; ".join(f"row {row}: {bad[row]}" for row in sorted(bad)[:3])
    return f"{first}; all in {artifact.folder}/skipped.json"


def refuse_shared(pairs: ForeignPairs, name: str, prompts: Sequence[str]) -> None:
    """ValueError where one of the prompts of `prompts.NAME` is among those of the pairs."""
    if shared := set(pairs.prompts) & set(prompts):
        example = min(shared)[:80]
        raise ValueError(
            f"prompts.{name}: {len(shared)} of its prompts are in pairs.from too, such as {example!r}"
        )


def members(pairs: ForeignPairs, index: int, size: int) -> range:
    """The pairs of shard `index`."""
    return range(index * size, min((index + 1) * size, len(pairs.rows)))


def pair_ids(artifact: Artifact) -> Iterator[int]:
    """The pairs of a complete artifact, in order."""
    rows = read_table(*artifact.shards("candidates"))
    return (row["prompt_id"] for row in rows if row["candidate"] == 0)
