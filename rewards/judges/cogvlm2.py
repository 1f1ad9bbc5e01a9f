"""CogVLM2 as a judge: all questions about a picture or clip in one pass over its cached prefix.

VisionReward (arXiv 2412.21059) asks one question after another and names the reuse of the visual prefix as
future work. Shapes: B media, Q questions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rewards.cogvlm2.configuration import read_config
from rewards.cogvlm2.modeling import CogVLM2ForCausalLM
from rewards.cogvlm2.processing import CogVLM2Processor
from rewards.judges.base import Answers, Asking, Failure
from rewards.judges.batches import in_batches
from rewards.judges.layouts import Layouts
from rewards.judges.loading import load_weights, one_line
from rewards.judges.packing import Packed, PrefixCache, split_packs
from rewards.judges.yes_no import read_yes_no, spellings, to_answers, weights_digest
from rewards.media import PER_SECOND, Media


class CogVLM2Judge(Asking):
    """Answers yes/no questions with CogVLM2 (images) or CogVLM2-Video.

    batch_size: media in one pass at most; halved for good when memory does not suffice. frames: which frames
    of a clip to take, as `load_media` has it.
    """

    def __init__(
        self,
        model: CogVLM2ForCausalLM,
        processor: CogVLM2Processor,
        name: str,
        batch_size: int = 16,
        frames: str = PER_SECOND,
    ):
        self.model = model
        self.processor = processor
        self.name = name
        self.batch_size = batch_size
        self.frames = frames
        self.modality = processor.modality
        self.words = spellings(processor.tokenizer, name)
        self.layouts = Layouts(model.config.hidden_size)

    @classmethod
    def load(
        cls,
        path: str | Path,
        template: str | None = None,
        dtype: str = "bfloat16",
        device: str = "auto",
        batch_size: int = 16,
        frames: str = PER_SECOND,
        **options,
    ) -> CogVLM2Judge:
        """The judge in a folder or on the hub; ValueError with one line when it cannot be loaded.

        template: base | vqa | chat; None: the release's, vqa for images and chat for clips. options: further
        keywords of `from_pretrained`, such as `device_map` and `quantization_config`.
        """
        # What is small first: without a tokenizer nobody should wait for the weights.
        try:
            config = read_config(path)
        except (OSError, TypeError) as error:  # TypeError: fields of the wrong kind
            raise ValueError(f"{path}: this model cannot be loaded: {one_line(error)}") from None
        processor = CogVLM2Processor.from_pretrained(path, config, template)
        model = load_weights(CogVLM2ForCausalLM, path, dtype, device, **options)
        return cls(model, processor, str(path), batch_size, frames)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, the template and the vocabulary."""
        vocabulary = sorted(self.processor.tokenizer.get_vocab().items())
        parts = (weights_digest(self.model), self.processor.template, vocabulary)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _answer(self, media: Sequence[Media], questions: Sequence[Sequence[str]]) -> list[Answers | Failure]:
        """Per item its answers, or why it has none."""
        results: list[Answers | Failure | None] = [None] * len(media)
        groups: dict[tuple[int, int], list[int]] = {}  # rows of like prefixes and numbers of questions
        for row, (item, asked) in enumerate(zip(media, questions, strict=True)):
            if item.kind == self.modality:
                groups.setdefault((len(item.pictures()), len(asked)), []).append(row)
            else:
                reason = f"{item.kind} given, {self.name} judges {self.modality}s"
                results[row] = Failure(f"{item.source}: {reason}")
        for rows in groups.values():
            logits = self.logits([media[row] for row in rows], [questions[row] for row in rows])
            for row, pair in zip(rows, zip(*read_yes_no(logits, self.words), strict=True), strict=True):
                results[row] = to_answers(*pair)
        return results

    def answer_plainly(self, media: Media, question: str) -> Answers:
        """One question asked by itself, the whole prompt in one forward pass: what `answer` must equal."""
        return to_answers(*read_yes_no(self.logits_plainly(media, question)[None], self.words))

    @torch.inference_mode()
    def logits_plainly(self, media: Media, question: str) -> Tensor:
        """First-token logits [V] of one question, pixels, prefix and all computed for it alone."""
        inputs = self.processor(question, media).to(self.model.device)
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]

    @torch.inference_mode()
    def logits(self, media: Sequence[Media], questions: Sequence[Sequence[str]]) -> Tensor:
        """First-token logits [B, Q, V] of media with equally many pictures and questions."""
        items = list(zip(media, questions, strict=True))
        return torch.stack(in_batches(self, items, lambda batch: self._batch(*zip(*batch, strict=True))))

    def _batch(self, media: Sequence[Media], questions: Sequence[Sequence[str]]) -> Tensor:
        """Prefix once, then all questions over its cache."""
        decoder, device = self.model.model, self.model.device
        pixels = torch.cat([self.processor.pixels(item, device) for item in media])
        prefix = self.processor.prefix(len(pixels) // len(media))
        cache = PrefixCache()
        rows = {name: value.to(device).expand(len(media), -1) for name, value in vars(prefix).items()}
        decoder(**rows, pixel_values=pixels, past_key_values=cache)

        def ask(packed: Packed) -> Tensor:
            rows = len(packed.input_ids)
            hidden = decoder(
                input_ids=packed.input_ids,
                position_ids=(packed.offsets + prefix.next_position).expand(rows, -1),
                attention_mask=packed.mask(len(prefix), self.model.dtype).expand(rows, -1, -1, -1),
                past_key_values=cache,
            ).last_hidden_state
            ends = packed.ends.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
            return self.model.lm_head(hidden.gather(1, ends)).float()

        texts = [[self.processor.text(question) for question in asked] for asked in questions]
        parts = split_packs([max(map(len, column)) for column in zip(*texts, strict=True)], len(prefix))
        logits = [self.layouts.run([row[part] for row in texts], len(prefix), device, ask) for part in parts]
        return torch.cat(logits, dim=1)
