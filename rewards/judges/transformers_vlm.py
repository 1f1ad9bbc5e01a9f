"""Any image-text-to-text model of transformers as a judge, all questions about a picture in one pass.

The part of the prompt that holds the picture does not depend on the question, so it runs once; the questions
follow over its key/value cache (`packing`, `layouts`). That is exact for decoders with full attention and the
picture before the question. The first answer is compared with a plain forward pass of the whole prompt, and
other architectures are refused.

A clip is shown as its frames, one picture after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from rewards.judges.architecture import check_architecture, check_window
from rewards.judges.base import Answers, Asking, Failure
from rewards.judges.batches import in_batches
from rewards.judges.layouts import Layouts
from rewards.judges.loading import load_processor, load_weights, one_line
from rewards.judges.packing import Packed, PrefixCache, split_packs
from rewards.judges.yes_no import EXACT, read_yes_no, spellings, to_answers, weights_digest
from rewards.media import PER_SECOND, Media, read_rule

_PROBES = ("A", "7", "?")  # stand-ins for questions: where prompts with these part, the question begins


@dataclass
class _Item:
    """One medium, ready for the model: the inputs of its prefix (batch of 1) and its questions' token ids."""

    row: int
    prefix: dict[str, Tensor]
    questions: list[list[int]]

    @property
    def key(self) -> tuple:
        """Items with equal keys can share a batch."""
        shapes = tuple((name, tuple(value.shape[1:])) for name, value in self.prefix.items())
        return (tuple(self.prefix["input_ids"][0].tolist()), shapes, len(self.questions))


class TransformersJudge(Asking):
    """Yes/no answers of an `AutoModelForImageTextToText`.

    template: with `{image}`, the whole prompt, `{image}` standing for the picture's placeholder and coming
    before `{question}`; without, what is said around `{question}` within the model's own chat template, such
    as "{question} Answer yes or no."; None: the question alone. frames: which frames of a clip to take, as
    `load_media` has it. batch_size: media in one pass at most; halved for good when memory does not suffice.
    """

    modality = "any"

    def __init__(
        self,
        model,
        processor,
        name: str,
        template: str | None = None,
        frames: str = PER_SECOND,
        batch_size: int = 16,
    ):
        read_rule(frames)
        template = template or "{question}"
        if "{question}" not in template:
            raise ValueError(f"{name}: template {template!r} has no {{question}}")
        if "{image}" not in template and not processor.chat_template:
            raise ValueError(f"{name}: no chat template; give a template with {{image}} and {{question}}")
        check_architecture(model.config, name)
        self.model = model
        self.processor = processor
        self.name = name
        self.template = template
        self.frames = frames
        self.batch_size = batch_size
        self.placeholder = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        self.words = spellings(processor.tokenizer, name)
        self.layouts = Layouts(model.config.get_text_config().hidden_size)
        self.checked = False
        # pictures of one prompt are asked the same questions
        self.prompt_tokens = lru_cache(1 << 14)(lambda question, n: self.encode(self.prompt(question, n)))
        image_processor = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
        parts = (weights_digest(model), self.prompt("{question}", 1), image_processor)
        self.fingerprint = hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @classmethod
    def load(
        cls,
        path: str | Path,
        template: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 16,
        frames: str = PER_SECOND,
    ) -> TransformersJudge:
        """The judge in a folder or on the hub; ValueError with one line when it cannot be loaded."""
        model = load_weights(AutoModelForImageTextToText, path, dtype, device)
        processor = load_processor(path, model.config)
        return cls(model, processor, str(path), template, frames, batch_size)

    def prompt(self, question: str, pictures: int) -> str:
        """The text that the model sees, with a placeholder for each picture."""
        if "{image}" in self.template:
            image = getattr(self.processor, "boi_token", None) or self.processor.image_token
            before, after = self.template.split("{image}", 1)
            return f"{before}{image * pictures}{after}".replace("{question}", question)
        text = {"type": "text", "text": self.template.replace("{question}", question)}
        content = [{"type": "image"}] * pictures + [text]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    @torch.inference_mode()
    def _answer(self, media: Sequence[Media], questions: Sequence[Sequence[str]]) -> list[Answers | Failure]:
        """Per item its answers, or why it has none."""
        results: list[Answers | Failure | None] = [None] * len(media)
        groups: dict[tuple, list[_Item]] = {}
        for row, (item, asked) in enumerate(zip(media, questions, strict=True)):
            try:
                prepared = _Item(row, *self.split_prompts(item, asked))
            except _Unreadable as error:
                results[row] = Failure(f"{item.source}: {self.name} cannot take it: {error}")
                continue
            groups.setdefault(prepared.key, []).append(prepared)
        for items in groups.values():
            for item, answers in zip(items, self._answer_group(items), strict=True):
                results[item.row] = answers
        if not self.checked:
            self._check_exact(media, questions, results)
        return results

    @torch.inference_mode()
    def answer_plainly(self, media: Media, question: str) -> Answers:
        """One question asked by itself, the whole prompt in one forward pass: what `answer` must equal."""
        inputs = self._inputs(media, self.prompt(question, len(media.pictures())))
        logits = self.model(**inputs, use_cache=False, logits_to_keep=1).logits
        return to_answers(*read_yes_no(logits[0], self.words))

    def _inputs(self, media: Media, text: str) -> dict[str, Tensor]:
        """Model inputs (batch of 1) of a prompt about a medium, on the model's device and in its type."""
        try:
            inputs = self.processor(
                text=[text],
                images=media.pictures(),
                add_special_tokens=self._adds_special_tokens(text),
                return_tensors="pt",
            )
        except (ValueError, TypeError) as error:
            raise _Unreadable(one_line(error)) from None
        return {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def _adds_special_tokens(self, text: str) -> bool:
        """False where the template already wrote the first token."""
        first = self.processor.tokenizer.bos_token
        return not (first and text.startswith(first))

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, or of its beginning."""
        return self.processor.tokenizer(text, add_special_tokens=self._adds_special_tokens(text))["input_ids"]

    def split_questions(self, pictures: int, asked: Sequence[str]) -> tuple[int, list[list[int]]]:
        """How many tokens the prompts about some pictures share, unexpanded, and the token ids of each
        question after them."""
        tokens = [self.prompt_tokens(question, pictures) for question in asked]
        probes = [self.prompt_tokens(probe, pictures) for probe in _PROBES]
        shared = min(_common_prefix([*tokens, *probes]), min(map(len, tokens)) - 1)
        if self.placeholder in probes[0][shared:]:
            raise ValueError(self._unshared())
        if any(self.placeholder in row[shared:] for row in tokens):
            raise _Unreadable(f"a question holds {self.processor.image_token}, which stands for a picture")
        return shared, [row[shared:] for row in tokens]

    def split_prompts(self, media: Media, asked: Sequence[str]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """The prompts about a medium, split: model inputs of the part they share (batch of 1), and the token
        ids of each question after it.

        The processor writes many tokens for each picture; what comes after the last picture it leaves alone,
        so the shared part is found among the unexpanded prompts and measured from the end.
        """
        pictures = len(media.pictures())
        _, questions = self.split_questions(pictures, asked)
        inputs = self._inputs(media, self.prompt(asked[0], pictures))
        ids, first = inputs["input_ids"][0].tolist(), questions[0]
        if ids[-len(first) :] != first:
            raise ValueError(self._unshared())
        length = len(ids) - len(first)
        shape = inputs["input_ids"].shape
        prefix = {
            name: value[:, :length] if value.shape == shape else value for name, value in inputs.items()
        }
        return prefix, questions

    def _unshared(self) -> str:
        return (
            f"{self.name}: its template puts the question first, so questions cannot share the picture; "
            "give a template with {image} before {question}"
        )

    def _answer_group(self, items: list[_Item]) -> list[Answers]:
        """Answers of items that can share a batch, as many at once as memory holds."""
        return in_batches(self, items, self._answer_batch)

    def _answer_batch(self, items: list[_Item]) -> list[Answers]:
        """Prefix once, then all questions over its cache."""
        prefix = {name: torch.cat([item.prefix[name] for item in items]) for name in items[0].prefix}
        length = prefix["input_ids"].shape[1]
        widths = [max(len(item.questions[q]) for item in items) for q in range(len(items[0].questions))]
        check_window(self.model.config, self.name, length + max(widths))
        cache = PrefixCache()
        self.model(**prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        start = self._next_position(length, len(items))

        def ask(packed: Packed) -> Tensor:
            logits = self._packed_logits(packed, cache, length, start)
            return torch.stack(read_yes_no(logits, self.words), dim=-1)

        parts = [
            self.layouts.run([item.questions[part] for item in items], length, self.model.device, ask)
            for part in split_packs(widths, length)
        ]
        return [to_answers(*row.unbind(-1)) for row in torch.cat(parts, dim=1)]

    def _packed_logits(self, packed: Packed, cache: PrefixCache, length: int, start: Tensor) -> Tensor:
        """Next-token logits [R, questions a row, V] after each question; start [B, 1]."""
        ends, column = packed.ends.unique(return_inverse=True)
        rows = len(packed.input_ids)
        mask = packed.mask(length, self.model.dtype).expand(rows, -1, -1, -1)
        logits = self.model(
            input_ids=packed.input_ids,
            attention_mask=mask,
            position_ids=start.repeat_interleave(rows // len(start), dim=0) + packed.offsets,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=ends,
        ).logits
        return logits.gather(1, column[..., None].expand(-1, -1, logits.shape[-1]))

    def _next_position(self, length: int, rows: int) -> Tensor:
        """Position [B, 1] of the first token after the prefix.

        Multimodal rotary positions (Qwen-VL) count a picture by its longer side: the model keeps how far
        positions lag behind tokens.
        """
        start = torch.full((rows, 1), length, device=self.model.device)
        lag = getattr(self.model.base_model, "rope_deltas", None)
        return start if lag is None else start + lag.to(start)

    def _check_exact(self, media, questions, results) -> None:
        """Once a judge: the last question of the first answered item, packed against plain."""
        for item, asked, result in zip(media, questions, results, strict=True):
            if isinstance(result, Answers):
                plain = self.answer_plainly(item, asked[-1])
                gap = max(
                    (plain.yes_logit[-1] - result.yes_logit[-1]).abs().item(),
                    (plain.no_logit[-1] - result.no_logit[-1]).abs().item(),
                )
                if not gap <= EXACT[self.model.dtype]:
                    raise ValueError(
                        f"{self.name}: {type(self.model).__name__} answers differently with a shared picture "
                        f"(log-probabilities differ by {gap:.2g}), so it cannot be used as a judge"
                    )
                self.checked = True
                return


class _Unreadable(ValueError):
    """A medium that the model's processor refuses."""


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning."""
    length = min(map(len, rows))
    return next((place for place in range(length) if len({row[place] for row in rows}) > 1), length)
