import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rewards.baselines import Similarity


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
