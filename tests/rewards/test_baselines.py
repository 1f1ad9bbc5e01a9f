import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from rewards import load_reward
from rewards.baselines import Similarity
from rewards.build import load_feature
from rewards.checklist import Checklist, Feature, Question
from rewards.media import load_media
from rewards.settings import RewardSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random CLIP, saved as users have it."""
    path = tmp_path_factory.mktemp("clip")
    letters = list("abcdefghijklmnopqrstuvwxyz")
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"), model_max_length=16)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=tower | ends | {"vocab_size": len(tokens), "max_position_embeddings": 16},
        vision_config=tower | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    return path


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_clipscore_is_that_of_the_models_own_logits(folder):
    pictures, prompts = [picture(seed) for seed in range(5)], ["red cat", "dog", "red cat", "a b", "zebra"]
    clip = Similarity.load(folder, batch_size=2)
    totals = [card.total for card in clip.score(pictures, prompts)]
    processor = CLIPProcessor.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder)
    inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
    with torch.no_grad():
        cosine = (model(**inputs).logits_per_image / model.logit_scale.exp()).diagonal()
    assert totals == pytest.approx((2.5 * cosine.clamp(min=0)).tolist(), abs=1e-5)
    assert np.ptp(totals) > 0
    scaled = [card.total for card in Similarity.load(folder, kind="pickscore").score(pictures, prompts)]
    assert scaled == pytest.approx((cosine * model.logit_scale.exp()).tolist(), abs=1e-4)


def test_a_video_gets_the_mean_of_its_frames(folder):
    pick = Similarity.load(folder, kind="pickscore")
    frames = [picture(seed) for seed in range(3)]
    (video,) = pick.score([np.stack([np.asarray(frame) for frame in frames])], ["dog"])
    alone = [card.total for card in pick.score(frames, ["dog"] * 3)]
    assert video.total == pytest.approx(np.mean(alone), abs=1e-5)
    assert video.dimensions == {"pickscore": video.total}


def test_unreadable_items_and_long_prompts_are_said_so(folder):
    clip = Similarity.load(folder)
    lost, found = clip.score(["none.png", picture(0)], ["dog", "abcdefghijklmnopqrstuvwxyz"])
    assert lost.missing == "none.png: no such file" and np.isnan(lost.total)
    assert found.notes == ("prompt of 28 tokens, only the first 16 were seen",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "clipscore"}, "clip.yaml: `path` is missing"),
        ({"path": "x", "size": 3}, "clip.yaml: key 'size' is unknown"),
        ({"path": "nowhere/at/all"}, "clip.yaml: nowhere/at/all"),
        ({"path": "x", "dtype": "int8"}, "int8"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Similarity.from_settings(settings, "clip.yaml")
    assert "\n" not in str(error.value)


def test_unknown_kind_is_named(folder):
    with pytest.raises(ValueError, match="did you mean 'clipscore'"):
        Similarity.load(folder, kind="clip_score")


def test_siglip_too(folder, tmp_path):
    """No special case: its embeddings and its padding are asked for in the same words."""
    words = {"model_max_length": 16, "model_input_names": ["input_ids"]}  # SigLIP sees its padding
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), **words)
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(images, tokenizer).save_pretrained(tmp_path)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 54, "max_position_embeddings": 16, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 16})
    torch.manual_seed(1)
    model = SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    pictures, prompts = [picture(seed) for seed in range(3)], ["red cat", "dog", "a b"]
    padded = {"padding": "max_length", "max_length": 16, "return_tensors": "pt"}
    inputs = tokenizer(prompts, **padded) | images(pictures, return_tensors="pt")
    with torch.no_grad():
        found = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    cosine = (found.image_embeds * found.text_embeds).sum(-1)
    values = Similarity.load(tmp_path, kind="pickscore").measure(list(map(load_media, pictures)), prompts)
    assert values == pytest.approx((cosine * model.logit_scale.exp()).tolist(), abs=1e-5)
    assert np.ptp(values) > 1e-3


def clip_feature(folder, **values):
    settings = RewardSettings(judge="x", device="cpu")
    return load_feature("alignment", {"kind": "clip", "path": str(folder)} | values, None, settings)


def test_in_the_place_of_vqascore(folder, tmp_path, tiny_vlm):
    """The feature is CLIPScore, and the scorecard says that it is not the release's score."""
    Checklist(
        "fit",
        (Question("cat", "Is there a cat?", "content", "cat", 1.0),),
        features=(Feature("alignment", "alignment", "alignment", 2.0, "clip-flant5-xxl"),),
    ).to_yaml(tmp_path / "fit.yaml")
    reward = load_reward(
        {
            "judge": str(tiny_vlm("llava")),
            "checklist": str(tmp_path / "fit.yaml"),
            "features": {"alignment": {"kind": "clip", "path": str(folder), "batch_size": 2}},
            "cache": str(tmp_path / "cache"),
            "min_mass": 0.0,
            "device": "cpu",
        }
    )
    pictures, prompts = [picture(seed) for seed in range(3)], ["dog", "zebra", "abcdefghijklmnopqrstuvwxyz"]
    cards = reward.score(pictures, prompts)
    expected = [card.total for card in Similarity.load(folder, device="cpu").score(pictures, prompts)]
    assert np.ptp(expected) > 0
    assert [card.features["alignment"] for card in cards] == pytest.approx(expected, abs=1e-6)
    assert [card.dimensions["alignment"] for card in cards] == pytest.approx(
        [2 * value for value in expected], abs=1e-6
    )
    other = f"alignment by {folder}, not clip-flant5-xxl: not the release's score"
    cut = "alignment: prompt of 28 tokens, only the first 16 were seen"
    assert [card.notes for card in cards] == [(other,), (other,), (other, cut)]
    reward.features["alignment"].measure = None  # a second time the cache has all of it
    assert reward.score(pictures, prompts) == cards


def test_the_fingerprint_is_of_weights_and_preparation(folder, tmp_path):
    start = clip_feature(folder).fingerprint
    assert clip_feature(folder, batch_size=3).fingerprint == start
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    other = tmp_path / "processor"
    CLIPProcessor.from_pretrained(folder).save_pretrained(other)
    (other / "processor_config.json").write_text(json.dumps(settings))
    assert clip_feature(folder, processor=str(other)).fingerprint != start


def test_batch_size_is_found(folder, monkeypatch):
    clip, media = clip_feature(folder), [load_media(picture(seed)) for seed in range(5)]
    expected, whole, sizes = clip.measure(media, ["dog"] * 5), Similarity._similarity, []

    def similarity(self, items):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, items)

    monkeypatch.setattr(Similarity, "_similarity", similarity)
    assert clip.measure(media, ["dog"] * 5) == pytest.approx(expected, abs=1e-6)
    assert sizes == [5, 2, 2, 1] and clip.batch_size == 2


def test_what_cannot_be_a_feature_is_one_line(folder, tmp_path, tiny_vlm):
    with pytest.raises(ValueError, match="features.alignment: `path` is missing"):
        clip_feature("")
    with pytest.raises(ValueError, match="features.alignment: key 'tokenizer' is unknown"):
        clip_feature(folder, tokenizer="x")
    with (
        pytest.warns(UserWarning, match="lm_head"),
        pytest.raises(ValueError, match="LlavaModel has no image and text embeddings to compare"),
    ):
        clip_feature(tiny_vlm("llava"))
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]  # never a random one in its place
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 missing .first: text_projection.weight"):
        clip_feature(tmp_path)
