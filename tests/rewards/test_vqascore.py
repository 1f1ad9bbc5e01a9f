"""VQAScore on a tiny random CLIP-FlanT5 that is stored as the released one is."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPVisionModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from rewards.cogvlm2.processing import image_pixels
from rewards.judges.base import Failure
from rewards.media import load_media
from rewards.vqascore import SYSTEM, CLIPT5Config, CLIPT5ForConditionalGeneration, VQAScore, pad_to_square

PROMPT = "a red fox"
T5 = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}
CLIP = {
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, and an end after every text, as T5's."""
    text = f'{SYSTEM} USER: ASSISTANT: Yes Does this figure show "{PROMPT} cat"? Please answer yes or no.'
    words = ["<pad>", "</s>", "<unk>", *re.findall(r"\w+|[^\w\s]+", text)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The released layout: CLIP's names are longer, and the output layer is not the embedding."""
    path = tmp_path_factory.mktemp("clip-flant5")
    torch.manual_seed(0)
    model = CLIPT5ForConditionalGeneration(CLIPT5Config(**T5, initializer_factor=2.0, vision_config=CLIP))
    model.save_pretrained(path)
    tower = "vision_tower.vision_tower."
    weights = {
        name.replace(tower, f"{tower}vision_model."): tensor.clone()
        for name, tensor in load_file(path / "model.safetensors").items()
    }
    weights["lm_head.weight"] = 0.3 * torch.randn(64, 16)
    for part in (0, 2):  # so that pictures matter
        weights[f"mm_projector.{part}.weight"] *= 20
    for name in ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        weights[name] = weights["shared.weight"].clone()
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def score(folder):
    return VQAScore.load(folder, folder, dtype="float32", device="cpu")


def picture(seed: int, size=(40, 30)):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (*size[::-1], 3), generator=generator, dtype=torch.uint8)
    return load_media(Image.fromarray(pixels.numpy()))


def test_equals_its_parts_put_together_by_hand(folder, score):
    """CLIP, projector and T5 loaded apart; the answer decoded token by token."""
    weights = load_file(folder / "model.safetensors")
    clip = CLIPVisionModel(score.model.config.vision_config).eval()
    tower = "vision_tower.vision_tower.vision_model."
    clip.load_state_dict({n.removeprefix(tower): w for n, w in weights.items() if n.startswith(tower)})
    t5 = T5ForConditionalGeneration(T5Config(**T5)).eval()
    t5.lm_head.weight = torch.nn.Parameter(torch.empty(64, 16))  # not tied
    t5.load_state_dict({n: w for n, w in weights.items() if n in t5.state_dict()})
    tokenizer = tiny_tokenizer()

    with torch.no_grad():
        image = picture(1)
        pixels = image_pixels(pad_to_square(image.image), 28)
        seen = clip(pixels, output_hidden_states=True).hidden_states[2]
        projected = torch.nn.functional.gelu(
            seen[0, 1:] @ weights["mm_projector.0.weight"].T + weights["mm_projector.0.bias"]
        )
        projected = projected @ weights["mm_projector.2.weight"].T + weights["mm_projector.2.bias"]
        torch.testing.assert_close(score.model.encode_images(pixels)[0], projected, atol=1e-5, rtol=0)
        before = tokenizer(f"{SYSTEM} USER: ").input_ids
        after = tokenizer(
            f'\nDoes this figure show "{PROMPT}"? Please answer yes or no. ASSISTANT: '
        ).input_ids
        assert before[-1] == after[-1] == 1 and 2 not in before + after
        inputs = torch.cat([t5.shared(torch.tensor(before)), projected, t5.shared(torch.tensor(after))])[None]
        yes = tokenizer.convert_tokens_to_ids("Yes")
        first = t5(inputs_embeds=inputs, decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
        second = t5(inputs_embeds=inputs, decoder_input_ids=torch.tensor([[0, yes]])).logits[0, -1]
        known = len(tokenizer)
        p_yes, p_end = first[:known].softmax(-1)[yes], second[:known].softmax(-1)[1]
    assert known < 64 and 0.001 < p_yes < 0.999
    assert score.measure([image], [PROMPT]) == pytest.approx([(p_yes * p_end).sqrt().item()], abs=1e-6)


def test_batches_do_not_matter_and_a_picture_is_seen_once(folder, score, monkeypatch):
    one, two = picture(1), picture(2, (25, 60))
    media = [one, two, load_media(one.image.copy()), two]
    prompts = [PROMPT, "cat", "a cat or a fox", PROMPT]
    alone = [score.measure([item], [prompt])[0] for item, prompt in zip(media, prompts, strict=True)]
    assert min(abs(a - b) for row, a in enumerate(alone) for b in alone[:row]) > 1e-4
    seen, encode = [], CLIPT5ForConditionalGeneration.encode_images

    def counted(self, pixels):
        seen.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(CLIPT5ForConditionalGeneration, "encode_images", counted)
    assert score.measure(media, prompts) == pytest.approx(alone, abs=5e-6)
    assert seen == [2]
    seen.clear()
    small = VQAScore(score.model, score.tokenizer, "small", batch_size=2)
    assert small.measure(media, prompts) == pytest.approx(alone, abs=5e-6)
    assert seen == [1, 1]


def test_batch_size_is_found(score, monkeypatch):
    patient = VQAScore(score.model, score.tokenizer, "patient", batch_size=8)
    media, prompts = [picture(seed) for seed in range(5)], [PROMPT] * 5
    expected, whole, sizes = patient.measure(media, prompts), VQAScore._batch, []

    def batch(self, media, prompts):
        sizes.append(len(media))
        if len(media) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, media, prompts)

    monkeypatch.setattr(VQAScore, "_batch", batch)
    assert patient.measure(media, prompts) == pytest.approx(expected, abs=1e-5)
    assert sizes == [5, 2, 2, 1] and patient.batch_size == 2


def test_clips_and_braces(score):
    clip = load_media(torch.zeros(2, 8, 8, 3, dtype=torch.uint8).numpy())
    found = score.measure([clip, picture(1)], [PROMPT, "{prompt} {}"])
    assert isinstance(found[0], Failure) and "video given" in found[0].reason
    assert 0 < found[1] < 1


def test_images_are_centred_on_a_square():
    # 4 x 2 white on 4 x 4: one row of CLIP's mean colour above and one below
    square = pad_to_square(Image.new("RGB", (4, 2), "white"))
    assert square.size == (4, 4)
    mean, white = (122, 116, 104), (255, 255, 255)
    assert [square.getpixel((0, row)) for row in range(4)] == [mean, white, white, mean]
    square = pad_to_square(Image.new("RGB", (1, 4), "white"))  # (4 - 1) // 2 = 1 column before
    assert [square.getpixel((column, 0)) for column in range(4)] == [mean, white, mean, mean]


def test_what_cannot_be_loaded_says_so(folder, tmp_path):
    with pytest.raises(ValueError, match="mm_projector_type: 'linear' is not supported, only 'mlp2x_gelu'"):
        CLIPT5Config(mm_projector_type="linear")
    with pytest.raises(ValueError, match="no tokenizer in this folder"):
        VQAScore.load(folder, tmp_path, dtype="float32", device="cpu")
    weights = load_file(folder / "model.safetensors")
    del weights["mm_projector.2.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="1 missing .first: mm_projector.2.bias."):
        VQAScore.load(tmp_path, folder, dtype="float32", device="cpu")


def test_a_folder_of_another_architecture_is_one_clear_line(folder):
    """Its decoder's fields make no T5: 32 is no multiple of the 12 heads that CLIP then has."""
    other = Path(__file__).parents[1] / "golden" / "cogvlm2" / "image"
    with pytest.raises(ValueError, match="image: this model cannot be loaded: .* not a multiple") as caught:
        VQAScore.load(other, folder, dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_read_only_where_it_is_said(folder, score, tmp_path):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    settings = {"dtype": "float32", "device": "cpu"}
    with pytest.raises(ValueError, match="no safetensors there; .* `allow_pickled_weights: true`") as caught:
        VQAScore.load(tmp_path, folder, **settings)
    assert "\n" not in str(caught.value)
    pickled = VQAScore.load(tmp_path, folder, allow_pickled_weights=True, **settings)
    assert pickled.measure([picture(1)], [PROMPT]) == score.measure([picture(1)], [PROMPT])
    torch.save({"lm_head.weight": Path("/")}, tmp_path / "pytorch_model.bin")  # anything but tensors
    with pytest.raises(ValueError, match="damaged or hold more than tensors"):
        VQAScore.load(tmp_path, folder, allow_pickled_weights=True, **settings)


def test_released_size():
    """CLIP ViT-L/14 at 336 px sees 24 x 24 patches; T5 XXL is 4096 wide: 11.44 B parameters."""
    flan = {
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "vocab_size": 32128,
    }
    with torch.device("meta"):
        model = CLIPT5ForConditionalGeneration(CLIPT5Config(**flan, feed_forward_proj="gated-gelu"))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts["mm_projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert round(parts["vision_tower"] / 1e6) == 304 and round(parts["encoder"] / 1e9, 1) == 4.8
