"""VQAScore (Lin et al. 2024, arXiv 2404.01291): how surely CLIP-FlanT5 says that an image shows a text.

VisionReward takes it in as the alignment of an image. The model is LLaVA with a T5: the patches that CLIP
sees, projected, stand in the encoder's input between two pieces of text. Names of modules and fields are
those of zhiqiulin/clip-flant5-xxl. Shapes: B pairs, I pictures, L tokens, H width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from rewards.alignment import QUESTION
from rewards.cogvlm2.processing import MEAN, image_pixels
from rewards.judges.base import Failure
from rewards.judges.batches import in_batches
from rewards.judges.loading import load_tokenizer, load_weights
from rewards.judges.yes_no import weights_digest
from rewards.media import Media

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)  # of the LLaVA conversations that the model was trained on
ANSWER = "Yes"
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


class CLIPT5Config(T5Config):
    """T5's configuration and the vision tower's; released files leave `vision_config` to the tower's name."""

    model_type = "clip_t5"
    sub_configs = {"vision_config": CLIPVisionConfig}

    mm_vision_tower: str = "openai/clip-vit-large-patch14-336"
    mm_projector_type: str = "mlp2x_gelu"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    vision_config: dict[str, Any] | CLIPVisionConfig | None = None

    def __post_init__(self, **kwargs):
        if not isinstance(self.vision_config, CLIPVisionConfig):
            self.vision_config = CLIPVisionConfig(**(self.vision_config or CLIP_L_336))
        super().__post_init__(**kwargs)
        for name in ("mm_projector_type", "mm_vision_select_feature"):
            if getattr(self, name) != getattr(CLIPT5Config, name):
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not supported, only {getattr(CLIPT5Config, name)!r}"
                )


class VisionTower(nn.Module):
    """CLIP's patches before its last layers."""

    def __init__(self, config: CLIPT5Config):
        super().__init__()
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.layer = config.mm_vision_select_layer

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.vision_tower(pixel_values.to(self.vision_tower.dtype), output_hidden_states=True)
        return seen.hidden_states[self.layer][:, 1:]


class CLIPT5ForConditionalGeneration(T5ForConditionalGeneration):
    """A T5 that sees: pictures [I, 3, S, S] become embeddings [I, patches, H] of its encoder."""

    config_class = CLIPT5Config
    _keys_to_ignore_on_load_unexpected = [
        r"^embed_tokens\.weight$",
        r"position_ids$",
    ]  # copies in released files

    def __init__(self, config: CLIPT5Config):
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        self.mm_projector = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, config.d_model),
            nn.GELU(),
            nn.Linear(config.d_model, config.d_model),
        )
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """What the encoder gets of pictures [I, 3, S, S]: [I, patches, H]."""
        return self.mm_projector(self.vision_tower(pixel_values))


def pad_to_square(image: Image.Image) -> Image.Image:
    """The image centred on a square of CLIP's mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


class VQAScore:
    """Measures how well images show their prompts, in [0, 1].

    The value is that of the authors' library, which the weights of VisionReward were learned with: the
    geometric mean of the probabilities of "Yes" and of the end after it. batch_size: pairs in one pass at
    most; halved for good when memory does not suffice.
    """

    def __init__(
        self,
        model: CLIPT5ForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        batch_size: int = 16,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size

    @classmethod
    def load(
        cls,
        path: str | Path = "zhiqiulin/clip-flant5-xxl",
        tokenizer: str | Path = "google/flan-t5-xxl",
        dtype: str = "bfloat16",
        device: str = "auto",
        batch_size: int = 16,
        allow_pickled_weights: bool = False,
    ) -> VQAScore:
        """From folders or hub ids; the weights were trained with the tokenizer of FLAN-T5.

        allow_pickled_weights: also reads pytorch_model*.bin, with `torch.load(weights_only=True)`, where
        there are no safetensors, as may be so of the released model. ValueError with one line where it cannot
        be loaded.
        """
        vocabulary = load_tokenizer(tokenizer)
        formats = {"use_safetensors": None if allow_pickled_weights else True, "weights_only": True}
        try:
            model = load_weights(CLIPT5ForConditionalGeneration, path, dtype, device, **formats)
        except ValueError as error:
            if allow_pickled_weights or "safetensors" not in str(error):
                raise
            raise ValueError(
                f"{path}: no safetensors there; where it has pickled weights (.bin) instead, "
                "`allow_pickled_weights: true` beside `kind: vqascore` reads them, tensors only"
            ) from None
        return cls(model, vocabulary, str(path), batch_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and the vocabulary."""
        parts = (weights_digest(self.model), sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def measure(self, media: Sequence[Media], prompts: Sequence[str]) -> list[float | Failure]:
        """The score of each image for its prompt; clips have none."""
        results: list[float | Failure] = [
            Failure(f"{item.source}: {item.kind} given, {self.name} measures images") for item in media
        ]
        # Prompts about one picture side by side, so that it is encoded once.
        rows = [row for row, item in enumerate(media) if item.kind == "image"]
        rows.sort(key=lambda row: media[row].digest)
        items = [(media[row], prompts[row]) for row in rows]
        scores = in_batches(self, items, lambda batch: self._batch(*zip(*batch, strict=True)).tolist())
        for row, score in zip(rows, scores, strict=True):
            results[row] = score
        return results

    def notes(self, prompt: str) -> tuple[str, ...]:
        """Nothing: the whole prompt is read."""
        return ()

    @torch.inference_mode()
    def _batch(self, media: Sequence[Media], prompts: Sequence[str]) -> Tensor:
        """Scores [B]."""
        device = self.model.device
        pictures = {item.digest: item.image for item in media}
        side = self.model.config.vision_config.image_size
        pixels = torch.cat([image_pixels(pad_to_square(image), side) for image in pictures.values()])
        seen = dict(zip(pictures, self.model.encode_images(pixels.to(device)), strict=True))
        embeds = [
            torch.cat(
                [
                    self._embed(f"{SYSTEM} USER: "),
                    seen[item.digest],
                    self._embed(f"\n{QUESTION.format(prompt=prompt)} ASSISTANT: "),
                ]
            )
            for item, prompt in zip(media, prompts, strict=True)
        ]
        mask = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in embeds], batch_first=True)
        inputs = pad_sequence(embeds, batch_first=True)
        answer = torch.tensor(self.tokenizer(ANSWER).input_ids, device=device).repeat(len(media), 1)
        logits = self.model(inputs_embeds=inputs, attention_mask=mask, labels=answer).logits
        # Rows past the vocabulary pad the embedding to a round size; the authors cut them off.
        log_prob = logits[..., : len(self.tokenizer)].float().log_softmax(dim=-1)
        return log_prob.gather(-1, answer.unsqueeze(-1)).squeeze(-1).mean(dim=1).exp()

    def _embed(self, text: str) -> Tensor:
        """Embeddings [L, H] of a piece of text and its end: the authors end each piece."""
        ids = torch.tensor(self.tokenizer(text).input_ids, device=self.model.device)
        return self.model.shared(ids)
