"""CogVLM2 as a judge: all questions about a picture or clip in one pass behind its cached prefix.

VisionReward (arXiv 2412.21059) asks one question after another and names the reuse of the visual prefix as
future work. Shapes: B media, Q questions, L tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers import DynamicCache

from rewards.cogvlm2.modeling import CogVLM2ForCausalLM
from rewards.cogvlm2.processing import CogVLM2Processor
from rewards.cogvlm2.tokens import Packed
from rewards.judges.base import Answers, Failure
from rewards.judges.yes_no import read_yes_no, spellings, to_answers, weights_digest
from rewards.media import PER_SECOND, Media

PACKED_TOKENS = 1024  # of questions in one pass: the mask grows with its square


class CogVLM2Judge:
    """Answers yes/no questions with CogVLM2 (images) or CogVLM2-Video.

    batch_size: media encoded at once, at most; halved for good whenever memory does not suffice.
    frames: which frames of a clip the media were loaded with, see `rewards.media.load_media`.
    """

    def __init__(
        self,
        model: CogVLM2ForCausalLM,
        processor: CogVLM2Processor,
        name: str,
        batch_size: int = 16,
        frames: str = PER_SECOND,
    ):
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.batch_size = batch_size
        self.frames = frames
        self.modality = processor.modality
        self.words = spellings(processor.tokenizer, name)

    @classmethod
    def load(
        cls,
        path: str | Path,
        template: str | None = None,
        dtype: str = "bfloat16",
        device: str = "auto",
        batch_size: int = 16,
        frames: str = PER_SECOND,
        **model_options,
    ) -> CogVLM2Judge:
        """The judge in a folder or hub repository; `auto` spreads it over the GPUs there are.

        model_options: further keywords of `from_pretrained`, such as `quantization_config`.
        """
        auto = "auto" if torch.cuda.is_available() else "cpu"
        model = CogVLM2ForCausalLM.from_pretrained(
            path, dtype=dtype, device_map=auto if device == "auto" else device, **model_options
        )
        processor = CogVLM2Processor.from_pretrained(path, model.config, template)
        return cls(model, processor, str(path), batch_size, frames)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, the template and the tokenizer."""
        parts = ("cogvlm2", self.processor.template, sorted(self.processor.tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{weights_digest(self.model)} {parts}".encode()).hexdigest()

    def answer(self, media: Sequence[Media], questions: Sequence[Sequence[str]]) -> list[Answers | Failure]:
        """Per item its answers, or why it has none."""
        unasked = Answers(torch.empty(0), torch.empty(0))
        refused = f"given, {self.name} judges {self.modality}s"
        results: list[Answers | Failure] = [
            unasked if item.kind == self.modality else Failure(f"{item.source}: {item.kind} {refused}")
            for item in media
        ]
        for row, logits in self.logits(media, questions):
            results[row] = to_answers(*read_yes_no(logits, self.words))
        return results

    def logits(
        self, media: Sequence[Media], questions: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Index and first-token logits [Q, V] of every item of the judge's modality.

        Media that make prefixes of one length go through together.
        """
        fit = [row for row, item in enumerate(media) if item.kind == self.modality and questions[row]]
        fit.sort(key=lambda row: _pictures(media[row]))
        for _, group in groupby(fit, key=lambda row: _pictures(media[row])):
            rows = list(group)
            while rows:
                batch = rows[: self.batch_size]
                try:
                    found = self._logits([media[row] for row in batch], [questions[row] for row in batch])
                except RuntimeError as error:
                    if self.batch_size == 1 or not should_reduce_batch_size(error):
                        raise
                    self.batch_size = max(1, len(batch) // 2)
                    found = None
                if found is None:  # outside the handler, which holds on to the failed batch's tensors
                    clear_device_cache(garbage_collection=True)
                    continue
                yield from zip(batch, found, strict=True)
                rows = rows[len(batch) :]

    @torch.inference_mode()
    def _logits(self, media: list[Media], questions: list[Sequence[str]]) -> list[Tensor]:
        """First-token logits [Q, V] of each item of a batch whose prefixes are alike."""
        decoder, device = self.model.model, self.model.device
        pixels = torch.cat([self.processor.pixels(item, device) for item in media])
        prefix = self.processor.prefix(len(pixels) // len(media))
        cache = DynamicCache(config=self.model.config)
        decoder(
            input_ids=prefix.input_ids.to(device).expand(len(media), -1),
            token_type_ids=prefix.token_type_ids.to(device).expand(len(media), -1),
            position_ids=prefix.position_ids.to(device).expand(len(media), -1),
            pixel_values=pixels,
            past_key_values=cache,
        )
        texts = [[self.processor.text(question) for question in asked] for asked in questions]
        found: list[list[Tensor]] = [[] for _ in media]
        for part in _parts(texts):
            packed = Packed.of([row[part] for row in texts], prefix, device)
            hidden = decoder(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                attention_mask=packed.attention_mask,
                past_key_values=cache,
            ).last_hidden_state
            cache.crop(-hidden.shape[1])
            for row, last in enumerate(packed.last):
                found[row].append(self.model.lm_head(hidden[row, last]).float())
        return [torch.cat(rows) for rows in found]


def _pictures(media: Media) -> int:
    return 1 if media.frames is None else len(media.frames)


def _parts(texts: list[list[list[int]]]) -> Iterator[slice]:
    """Slices of the questions such that no row has many more than `PACKED_TOKENS` in one."""
    start, filled = 0, [0] * len(texts)
    count = max(len(row) for row in texts)
    for column in range(count):
        sizes = [len(row[column]) if column < len(row) else 0 for row in texts]
        if column > start and max(a + b for a, b in zip(filled, sizes, strict=True)) > PACKED_TOKENS:
            yield slice(start, column)
            start, filled = column, [0] * len(texts)
        filled = [a + b for a, b in zip(filled, sizes, strict=True)]
    yield slice(start, count)
