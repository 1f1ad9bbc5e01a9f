"""Pictures, clips and questions to what the models take, value for value as the release prepares them.

Shapes: I pictures (one image, or the frames of a clip), S side of the model's image, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from rewards.cogvlm2.configuration import CogVLM2Config
from rewards.cogvlm2.tokens import CUES, Prefix, prompt
from rewards.judges.loading import load_tokenizer
from rewards.media import Media

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP
STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(plane: Tensor, colour: int) -> Tensor:
    """One colour of uint8 pixels on the scale that the tower was trained on."""
    return plane.float().div_(255).sub_(MEAN[colour]).div_(STD[colour])


def image_pixels(image: Image.Image, side: int) -> Tensor:
    """[1, 3, S, S] of an RGB image: PIL's bicubic resize to a square, whatever the aspect."""
    square = torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BICUBIC)))
    return torch.stack([normalise(square[..., colour], colour) for colour in range(3)])[None]


def frame_pixels(frames: Tensor, side: int) -> Tensor:
    """[I, 3, S, S] of uint8 frames [I, H, W, 3]: shorter side to S, bilinear, not antialiased; the centre."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    size = (math.floor(height / short * side), math.floor(width / short * side))
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)  # halves go to the even number
    planes = []
    # A colour at a time: the whole clip in float32 is large, and frames as channels round as in the release.
    for colour in range(3):
        plane = normalise(frames[..., colour], colour)[None]
        resized = torch.nn.functional.interpolate(plane, size=size, mode="bilinear", align_corners=False)
        planes.append(resized[0, :, top : top + side, left : left + side])
    return torch.stack(planes, dim=1)


class CogVLM2Processor:
    """Tokenizer, template and pixels of one checkpoint.

    template: base, vqa or chat; by default what VisionReward asks with, vqa for images and chat for clips. In
    the chat template of the video model each frame is followed by its number.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: CogVLM2Config, template: str | None = None
    ):
        self.tokenizer = tokenizer
        self.config = config
        self.modality = "image" if config.vision_experts else "video"
        self.template = template or {"image": "vqa", "video": "chat"}[self.modality]
        if self.template not in CUES:
            raise ValueError(f"template: {self.template!r} is unknown; allowed: {', '.join(CUES)}")

    @classmethod
    def from_pretrained(cls, path, config: CogVLM2Config, template: str | None = None) -> CogVLM2Processor:
        """With the tokenizer in a folder or on the hub; ValueError in one line where there is none."""
        return cls(load_tokenizer(path), config, template)

    def pixels(self, media: Media, device: torch.device | str = "cpu") -> Tensor:
        """What the vision tower takes of an image or a clip, [I, 3, S, S] in float32."""
        side = self.config.vision_config.image_size
        if self.modality == "image":
            return image_pixels(media.image, side).to(device)
        return frame_pixels(torch.from_numpy(media.frames).to(device), side)

    def prefix(self, pictures: int) -> Prefix:
        """What precedes the text: bos, an image or so many frames, and the frames' numbers in a chat."""
        numbered = self.modality == "video" and self.template == "chat"
        captions = [self.encode(str(index)) if numbered else [] for index in range(pictures)]
        tokens = self.config.vision_config.tokens
        return Prefix.of(captions, tokens, self.config.bos_token_id, self.config.pad_token_id)

    def text(self, query: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Ids of a query in the template, after the prefix."""
        return self.encode(prompt(query, self.template, history))

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone, without a first token."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def __call__(
        self, query: str, media: Media | None = None, history: Sequence[tuple[str, str]] = ()
    ) -> BatchFeature:
        """One conversation as `forward` and `generate` take it: ids, types, positions, mask [1, L], pixels.

        Without media the conversation is about nothing but its text.
        """
        pixels = None if media is None else self.pixels(media)
        prefix = self.prefix(0 if pixels is None else len(pixels))
        text = torch.tensor(self.text(query, history), dtype=torch.long)
        place = torch.arange(len(text)) + prefix.next_position
        inputs = {
            "input_ids": torch.cat([prefix.input_ids, text])[None],
            "token_type_ids": torch.cat([prefix.token_type_ids, torch.zeros_like(text)])[None],
            "position_ids": torch.cat([prefix.position_ids, place])[None],
        }
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if pixels is not None:
            inputs["pixel_values"] = pixels
        return BatchFeature(inputs)
