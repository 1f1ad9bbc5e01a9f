"""Which decoders can answer several questions over one shared picture."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def check_architecture(config, name: str) -> None:
    """ValueError for architectures whose prefix cannot serve several questions."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if config.is_encoder_decoder or getattr(text, "cross_attention_layers", None):
        reason = "it looks at the picture through cross-attention"
    elif unshared := kinds - {"full_attention", "sliding_attention"}:
        reason = f"it has {', '.join(sorted(unshared))} layers, whose state cannot be shared"
    elif config.model_type == "paligemma":
        reason = "its picture attends to the question"
    else:
        return
    raise ValueError(f"{name}: {config.model_type} cannot answer questions over a shared picture: {reason}")


def whole_pictures(config, prefix: Mapping[str, Tensor]) -> Tensor | None:
    """For models whose picture tokens see the whole of their picture: which picture each token of a prefix
    belongs to, [1, P], -1 for text. None for the others, which see what came before.

    Gemma 3 marks runs of picture tokens in `token_type_ids` (transformers, `create_masks_for_vision_model`),
    and applies that only where it makes the attention mask itself.
    """
    if config.model_type != "gemma3":
        return None
    picture = prefix["token_type_ids"] == 1
    starts = picture & ~nn.functional.pad(picture, (1, 0), value=False)[:, :-1]
    return (starts.cumsum(1) - 1).masked_fill(~picture, -1)


def check_window(config, name: str, length: int) -> None:
    """ValueError when a prompt is longer than the window of sliding attention, which the packed mask does
    not have.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    if window is not None and slides and length > window:
        raise ValueError(
            f"{name}: a prompt of {length} tokens is longer than its attention window of {window}; "
            "smaller or fewer pictures are needed"
        )
