"""The CogVLM2 judge: one pass equals the plain loop and the recorded answers of the reference."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_cogvlm2 import FOLDER, asked, clip, close, judge, picture, recorded
from PIL import Image
from transformers import BitsAndBytesConfig

from rewards.build import load_judge
from rewards.checklist import Checklist
from rewards.judges import cogvlm2, packing
from rewards.judges.base import Failure
from rewards.judges.cogvlm2 import CogVLM2Judge
from rewards.judges.layouts import LAYOUTS
from rewards.judges.yes_no import Spellings
from rewards.media import load_media

SHARED = Path(__file__).parents[3] / "shared"
YES, NO = 261, 260  # the spellings that the reference counts


def test_one_pass_matches_the_recorded_video_logits():
    logits = judge("video").logits([clip()], [asked("video")])
    close(logits[0], recorded("video")["last_logits"])


def test_one_pass_matches_the_recorded_image_logits():
    logits = judge("image").logits([picture()], [asked("image", "questions")])
    close(logits[0], recorded("image")["last_logits"])
    logits = judge("image").logits([picture()], [asked("image")])
    close(logits[0][:, [YES, NO]], recorded("image")["checklist_yes_no"])


@pytest.mark.parametrize("kind", ["image", "video"])
def test_one_pass_equals_one_question_at_a_time(kind):
    media = {"image": picture, "video": clip}[kind]()
    questions = asked(kind)[:6]
    plain = torch.stack([judge(kind).logits_plainly(media, question) for question in questions])
    close(judge(kind).logits([media], [questions])[0], plain, atol=1e-4)
    answers, single = (
        judge(kind).answer([media], [questions])[0],
        judge(kind).answer_plainly(media, questions[2]),
    )
    close(answers.yes_logit[2], single.yes_logit[0], atol=1e-4)
    close(answers.p_yes[2], single.p_yes[0], atol=1e-4)
    close(answers.outside[2], single.outside[0], atol=1e-4)


def test_many_questions_are_split_and_equal():
    questions = asked("image") * 3
    widths = [len(judge("image").processor.text(question)) for question in questions]
    assert len(list(packing.split_packs(widths, 7))) > 1
    logits = judge("image").logits([picture()], [questions])[0]
    close(logits[:30], logits[60:], atol=2e-5)


def test_a_batch_of_clips_equals_clips_alone():
    """Lengths of clips and prompts differ, and so do numbers of questions; one item is no clip."""
    media = [clip(3), clip(5), picture(), clip(3), clip(4)]
    questions = [asked("video")[start:stop] for start, stop in ((0, 4), (3, 7), (0, 2), (8, 12), (1, 2))]
    together = judge("video").answer(media, questions)
    assert isinstance(together[2], Failure) and "image given" in together[2].reason
    for row in (0, 1, 3, 4):
        alone = judge("video").answer([media[row]], [questions[row]])[0]
        close(together[row].yes_logit, alone.yes_logit, atol=5e-5)
        close(together[row].no_logit, alone.no_logit, atol=5e-5)


def test_pictures_in_one_batch_stay_apart():
    other = load_media(Image.effect_noise((40, 30), 90).convert("RGB"))
    questions = [asked("image")[:5], asked("image")[5:10]]
    both = judge("image").logits([picture(), other], questions)
    for row, item in enumerate((picture(), other)):
        close(both[row], judge("image").logits([item], [questions[row]])[0], atol=2e-5)


def test_batch_size_is_found(monkeypatch):
    """Memory that holds two clips: the batch shrinks from 8 to 2, the answers stay, and the size is kept."""
    patient = CogVLM2Judge(judge("video").model, judge("video").processor, "video", batch_size=8)
    media, questions = [clip(2)] * 5, [asked("video")[row : row + 1] for row in range(5)]
    expected = patient.logits(media, questions)
    whole, sizes = CogVLM2Judge._batch, []

    def batch(self, media, questions):
        sizes.append(len(media))
        if len(media) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, media, questions)

    monkeypatch.setattr(CogVLM2Judge, "_batch", batch)
    close(patient.logits(media, questions), expected, atol=5e-5)
    assert sizes == [5, 2, 2, 1] and patient.batch_size == 2
    monkeypatch.setattr(CogVLM2Judge, "_batch", lambda *_: batch(patient, range(3), None))
    with pytest.raises(MemoryError, match="video: not enough memory for a single picture"):
        patient.logits(media, questions)


def test_the_cached_prefix_is_not_copied_per_question(monkeypatch):
    """What is held after all questions is the prefix, once, whichever way they were asked."""
    mine, caches = CogVLM2Judge(judge("video").model, judge("video").processor, "video"), []

    class Watched(packing.PrefixCache):
        def __init__(self):
            super().__init__()
            caches.append(self)

    monkeypatch.setattr(cogvlm2, "PrefixCache", Watched)
    for mine.layouts.fixed in LAYOUTS:
        mine.logits([clip(4)], [asked("video")])
    groups = mine.model.config.num_multi_query_heads
    held = [layer.keys.shape for cache in caches for layer in cache.layers]
    assert held == [(1, groups, 1 + 4 * 67, 16)] * 2 * len(mine.model.model.layers)


def test_fingerprint_tells_template_and_weights_apart():
    model = judge("video").model
    prints = {
        CogVLM2Judge.load(FOLDER / "video", template=template, dtype=dtype, device="cpu").fingerprint
        for template, dtype in (("chat", "float32"), ("vqa", "float32"), ("chat", "bfloat16"))
    }
    assert len(prints | {judge("image").fingerprint}) == 4
    assert CogVLM2Judge(model, judge("video").processor, "elsewhere").fingerprint in prints


def test_media_in_any_form(tmp_path):
    image = picture().image
    image.save(tmp_path / "a.png")
    question, other = asked("image")[:2]
    expected = judge("image").answer([picture()], [[question, other]])[0]
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image, picture()):
        answers = judge("image").answer(source, [question, other])
        assert torch.equal(answers.yes_logit, expected.yes_logit)
        assert torch.equal(answers.p_yes, expected.p_yes)
    assert judge("image").answer(image, question).p_yes.shape == (1,)
    found = judge("image").answer([image, tmp_path / "absent.png", tmp_path / "a.png"], [question, other])
    assert isinstance(found[1], Failure) and found[1].reason.endswith("absent.png: no such file")
    for answers in (found[0], found[2]):
        close(answers.no_logit, expected.no_logit, atol=2e-5)
    frames = clip(3).frames
    close(
        judge("video").answer(frames, asked("video")[:2]).p_yes,
        judge("video").answer([clip(3)], [asked("video")[:2]])[0].p_yes,
    )
    with pytest.raises(ValueError, match="absent.png: no such file"):
        judge("image").answer(tmp_path / "absent.png", question)
    with pytest.raises(ValueError, match="image given, .* judges videos"):
        judge("video").answer(image, question)
    with pytest.raises(ValueError, match="1 media and 2 lists of questions"):
        judge("image").answer([image], [[question], [other]])


def test_load_judge_tells_the_kind():
    for kind in ("image", "video"):
        loaded = load_judge(FOLDER / kind, device="cpu", batch_size=3, frames="uniform:4")
        assert type(loaded) is CogVLM2Judge and loaded.fingerprint == judge(kind).fingerprint
        assert (loaded.modality, loaded.batch_size, loaded.frames) == (kind, 3, "uniform:4")


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_folder_as_released_loads_without_its_code(kind, tmp_path, monkeypatch):
    """No model_type, an auto_map whose code leaves a trace, and someone who would agree to run it."""
    shutil.copytree(FOLDER / kind, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "model_type" not in config
    architecture = config["architectures"][0]
    config["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": f"theirs.{architecture}"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_version": "4.42.4"}))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    prompts = []
    monkeypatch.setattr("builtins.input", lambda text: prompts.append(text) or "y")
    loaded = load_judge(tmp_path, device="cpu")
    assert type(loaded.model).__name__ == architecture and loaded.fingerprint == judge(kind).fingerprint
    assert not prompts and not (tmp_path / "ran").exists()


def test_eight_bits_answer_about_the_same():
    pytest.importorskip("bitsandbytes", reason="8-bit weights need bitsandbytes")
    config = BitsAndBytesConfig(load_in_8bit=True)
    loaded = CogVLM2Judge.load(FOLDER / "image", "vqa", "float32", "cpu", quantization_config=config)
    linear = {name for name, part in loaded.model.named_modules() if type(part).__name__ == "Linear8bitLt"}
    assert len(linear) == 32 and not any("lm_head" in name for name in linear)
    exact, found = (part.logits([picture()], [asked("image")[:5]]) for part in (judge("image"), loaded))
    assert (found - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_eight_bits_without_outlier_columns_answer_alike_in_any_company():
    """LLM.int8 picks the columns it leaves in 16 bits over all tokens of a pass; told not to, what becomes
    of a token is its own.
    """
    pytest.importorskip("bitsandbytes", reason="8-bit weights need bitsandbytes")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    loaded = CogVLM2Judge.load(FOLDER / "image", "vqa", "float32", "cpu", quantization_config=config)
    plain = torch.stack([loaded.logits_plainly(picture(), question) for question in asked("image")[:5]])
    close(loaded.logits([picture()], [asked("image")[:5]])[0], plain, atol=1e-3)


@pytest.mark.skipif(
    torch.cpu.get_capabilities().get("avx512_bf16", False),
    reason="with avx512_bf16 bitsandbytes repacks 4-bit weights in blocks of 64; the tower is 32 wide",
)
def test_four_bits_answer_alike_in_one_pass_and_alone():
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True)
    loaded = CogVLM2Judge.load(FOLDER / "image", "vqa", "float32", "cpu", quantization_config=config)
    linear = {name for name, part in loaded.model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert len(linear) == 32 and not any("lm_head" in name for name in linear)
    plain = torch.stack([loaded.logits_plainly(picture(), question) for question in asked("image")[:5]])
    close(loaded.logits([picture()], [asked("image")[:5]])[0], plain, atol=1e-4)


def test_wrong_folders_say_so_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded: .*no config.json"):
        CogVLM2Judge.load(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names neither `architectures` .* nor a `model_type`"):
        load_judge(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CogVLMForCausalLM"]}))
    with pytest.raises(ValueError, match="no tokenizer in this folder"):
        CogVLM2Judge.load(tmp_path, device="cpu")
    for file in (FOLDER / "image").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        CogVLM2Judge.load(tmp_path, device="cpu")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="dtype 'half' is unknown"):
        CogVLM2Judge.load(FOLDER / "image", dtype="half", device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "sixty"},
        {"num_attention_heads": 0},
        {"vision_config": "none"},
        {"vision_config": {"hidden_size": "sixty"}},
    ],
)
def test_a_config_that_makes_no_model_is_one_clear_line(change, tmp_path):
    shutil.copytree(FOLDER / "video", tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match="odd: this model cannot be loaded: ") as caught:
        load_judge(tmp_path / "odd", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the release's weights and recorded scores lie in ../shared")
@pytest.mark.parametrize("kind", ["image", "video"])
def test_answers_and_score_of_the_release(kind, monkeypatch):
    """The release counts "yes" only where it is the likeliest token of all; we compare it with "no"."""
    expected = json.loads((SHARED / "golden" / "cogvlm2" / kind / "questions.json").read_text())
    media = {"image": picture, "video": clip}[kind]()
    questions = expected.get("select_questions") or [row["query"] for row in expected["rows"]]
    likeliest = judge(kind).logits([media], [questions])[0].argmax(-1)
    said_yes = likeliest == YES
    assert (said_yes.long() * 2 - 1).tolist() == expected["answers"]

    checklist = Checklist.from_release(SHARED / "visionreward" / kind, kind)
    feature = torch.tensor([[0.5]]) if kind == "image" else None
    score = checklist.score(said_yes.double()[None], feature).total.item()
    assert score == pytest.approx(expected.get("score") or expected["score_with_alignment_0.5"], abs=1e-7)

    monkeypatch.setattr(judge(kind), "words", Spellings(yes=(YES,), no=(NO,)))
    answers = judge(kind).answer([media], [questions])[0]
    decided = (likeliest == YES) | (likeliest == NO)
    assert decided.sum() == {"image": 27, "video": 26}[kind]
    assert torch.equal((answers.p_yes > 0.5)[decided], said_yes[decided])
