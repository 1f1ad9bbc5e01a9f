"""The bundled video judge's architecture: a CogVLM2-Video of 0.9 M parameters, its tokenizer, its sequences.

Each frame of 32x32 pixels becomes 4 visual tokens between a begin and an end, so a clip is 64 tokens with
the numbers of its frames; a decoder of 5 layers reads them before the questions. The saved folder is laid out
as the release's is.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from quickstart.video.world import FRAMES, SIZE
from rewards.cogvlm2.configuration import CogVLM2VideoConfig
from rewards.cogvlm2.modeling import CogVLMVideoForCausalLM
from rewards.cogvlm2.processing import CogVLM2Processor
from rewards.cogvlm2.tokens import CUES, prompt

WIDTH = 96  # of the decoder
LAYERS, SEEING_LAYERS = 5, 3  # of the decoder; after so many, the clip's last token says what the clip shows
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def new_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the words of `texts` and of the chat template; other words are <unk>."""
    lower, split = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    asked = [prompt(text, template) for text in texts for template in CUES]
    said = [*asked, "yes no", *map(str, range(FRAMES))]
    words = {word for text in said for word, _ in split.pre_tokenize_str(lower.normalize_str(text))}
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *sorted(words)])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    backend.normalizer, backend.pre_tokenizer = lower, split
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def new_model(tokenizer: PreTrainedTokenizerFast) -> CogVLMVideoForCausalLM:
    """Return the judge with random weights, in float32."""
    patch = 8
    vision = {
        "image_size": SIZE,
        "patch_size": patch,
        "num_positions": (SIZE // patch) ** 2 + 1,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_heads": 4,
        "intermediate_size": 192,
    }
    config = CogVLM2VideoConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_multi_query_heads=2,
        template_version="chat",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=WIDTH**-0.5,  # the usual 0.02 is made for wide models: narrow ones hardly start
        vision_config=vision,
    )
    model = CogVLMVideoForCausalLM(config)
    nn.init.orthogonal_(model.get_input_embeddings().weight)
    return model


def embed_clips(model: CogVLMVideoForCausalLM, processor: CogVLM2Processor, pixels: Tensor) -> Tensor:
    """Return the decoder's embeddings [B, P, WIDTH] of clips [B, T, 3, S, S] as the prefix of a question."""
    count, frames = pixels.shape[:2]
    prefix = processor.prefix(frames)
    rows = (part.expand(count, -1) for part in (prefix.input_ids, prefix.token_type_ids))
    return model.model.embed(*rows, pixels.flatten(0, 1))


def clip_state(model: CogVLMVideoForCausalLM, processor: CogVLM2Processor, clip: Tensor) -> Tensor:
    """Return what the decoder makes of clips [B, P, WIDTH], as `embed_clips` gives them: the state of the
    last token [B, WIDTH], which saw all others, after `SEEING_LAYERS`. Those above are for questions."""
    places = processor.prefix(FRAMES).position_ids.expand(len(clip), -1)
    states = model.model(
        inputs_embeds=clip, position_ids=places, use_cache=False, output_hidden_states=True
    ).hidden_states
    return states[SEEING_LAYERS][:, -1]
