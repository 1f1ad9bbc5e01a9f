"""Image-text similarity by any CLIP-like model that transformers loads: a reward to compare with, and a
feature of a checklist in the place of VQAScore.

CLIPScore (Hessel et al. 2021, arXiv 2104.08718) is 2.5 * max(cos, 0) of the two embeddings. PickScore
(Kirstain et al. 2023, arXiv 2305.01569) is a CLIP model too, scored by the scaled cosine itself. Videos get
the mean over their frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from rewards.choice import check_choice
from rewards.judges.base import Failure
from rewards.judges.batches import in_batches
from rewards.judges.loading import DTYPES, load_processor, load_weights, one_line
from rewards.judges.yes_no import weights_digest
from rewards.media import Media, load_media
from rewards.scorecard import Scorecard

KINDS = ("clipscore", "pickscore")


@dataclass
class Similarity:
    """Scores media by how well they fit their prompt; scorecards have a total and one dimension, `kind`.

    kind: clipscore, 2.5 * max(cos, 0); pickscore, the cosine times the model's learned scale. batch_size:
    items, and pictures or frames, in one pass at most; halved for good when memory does not suffice.
    """

    model: torch.nn.Module
    processor: object
    name: str
    kind: str = "clipscore"
    batch_size: int = 16
    frames: str = "per_second"

    @classmethod
    def load(
        cls,
        path: str | Path,
        processor: str | Path | None = None,
        kind: str = "clipscore",
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 16,
        frames: str = "per_second",
    ) -> Similarity:
        """From a folder or hub id; `processor` where it lies elsewhere, as PickScore's does. ValueError with
        one line where it cannot be loaded.
        """
        check_choice("baseline kind", kind, KINDS)
        check_choice("baseline dtype", dtype, list(DTYPES))
        model = load_weights(AutoModel, path, dtype, device)
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ValueError(f"{path}: {type(model).__name__} has no image and text embeddings to compare")
        found = load_processor(processor or path, model.config)
        return cls(model, found, str(path), kind, batch_size, frames)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str = "baseline") -> Similarity:
        """From the keys of a YAML file: those of `load`. ValueError naming the key that is wrong."""
        allowed = [name for name in signature(cls.load).parameters]
        for key in settings:
            check_choice(f"{where}: key", key, allowed)
        if not settings.get("path"):
            raise ValueError(f"{where}: `path` is missing: a folder or hub id")
        try:
            return cls.load(**settings)
        except (OSError, ValueError) as error:
            raise ValueError(f"{where}: {one_line(error)}") from None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, the vocabulary and how pictures are prepared."""
        tokenizer, images = self.processor.tokenizer, self.processor.image_processor
        words = sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length
        parts = (self.kind, weights_digest(self.model), words, sorted(images.to_dict().items()))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def measure(self, media: Sequence[Media], prompts: Sequence[str]) -> list[float | Failure]:
        """The similarity of each medium and its prompt; in clips, the mean over frames."""
        items = list(zip(media, prompts, strict=True))
        return in_batches(self, items, lambda batch: self._similarity(batch).tolist())

    def score(self, media: Sequence, prompts: Sequence[str]) -> list[Scorecard]:
        """One scorecard an item, in order; what cannot be read has a reason and no numbers."""
        return list(self.stream(media, prompts))

    def stream(self, media: Sequence, prompts: Sequence[str]) -> Iterator[Scorecard]:
        """Like `score` for many items, yielding each scorecard as it comes."""
        items = zip(media, prompts, strict=True)
        while chunk := list(islice(items, self.batch_size)):
            loaded = [self._load(source) for source, _ in chunk]
            known = [
                (item, prompt)
                for item, (_, prompt) in zip(loaded, chunk, strict=True)
                if isinstance(item, Media)
            ]
            values = iter(self.measure(*zip(*known, strict=True)) if known else ())
            for item, (source, prompt) in zip(loaded, chunk, strict=True):
                yield self._card(item, source, prompt, next(values) if isinstance(item, Media) else None)

    def _load(self, source) -> Media | str:
        try:
            return load_media(source, self.frames)
        except ValueError as error:
            return str(error)

    @torch.inference_mode()
    def _similarity(self, items: list[tuple[Media, str]]) -> Tensor:
        """Score [B]; the frames of a video are averaged."""
        pictures = [item.pictures() for item, _ in items]
        images = self._embed_images([picture for group in pictures for picture in group])
        texts = self._embed_texts([prompt for _, prompt in items])
        owner = torch.tensor([row for row, group in enumerate(pictures) for _ in group], device=texts.device)
        cosine = (images * texts[owner]).sum(-1)
        score = (
            2.5 * cosine.clamp(min=0) if self.kind == "clipscore" else cosine * self.model.logit_scale.exp()
        )
        sums = torch.zeros(len(items), device=score.device).index_add_(0, owner, score.float())
        return (sums / torch.bincount(owner, minlength=len(items))).cpu()

    def _embed_images(self, pictures: list) -> Tensor:
        parts = [pictures[row : row + self.batch_size] for row in range(0, len(pictures), self.batch_size)]
        return torch.cat([self._embed("image", images=part) for part in parts])

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return self._embed("text", text=texts, padding="max_length", truncation=True)

    def _embed(self, side: str, **inputs) -> Tensor:
        """Embeddings of length 1 [B, D]."""
        batch = self.processor(**inputs, return_tensors="pt").to(self.model.device)
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
        features = getattr(self.model, f"get_{side}_features")(**batch).pooler_output
        return normalize(features.float(), dim=-1)

    def _card(self, item: Media | str, source, prompt: str, value: float | None) -> Scorecard:
        common = {"prompt": prompt, "reward": self.kind, "reduction": "sum", "coding": "none"}
        if isinstance(item, str):
            return Scorecard(item=str(source), missing=item, **common)
        levels = {"total": {"total": value}, "dimension": {self.kind: value}}
        notes = (*item.notes, *self.notes(prompt))
        return Scorecard(item=item.source, levels=levels, notes=notes, **common)

    def notes(self, prompt: str) -> list[str]:
        """Says so where the prompt is longer than the model reads."""
        tokenizer = self.processor.tokenizer
        count = len(tokenizer(prompt).input_ids)
        limit = tokenizer.model_max_length
        return [f"prompt of {count} tokens, only the first {limit} were seen"] if count > limit else []
