"""A SAT checkpoint of the tiny image model, as a folder, a tar and parts of one, to safetensors."""

import json
import random
import tracemalloc
import weakref
import zipfile

import numpy as np
import pytest
import torch
from golden_cogvlm2 import FOLDER, judge, picture, recorded
from made_up_sat import CONFIG, sat_name, save_parts, save_sat, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rewards.cogvlm2 import convert
from rewards.cogvlm2.convert import convert_sat
from rewards.cogvlm2.modeling import CogVLM2ForCausalLM
from rewards.cogvlm2.sat import SATCheckpoint
from rewards.judges.cogvlm2 import CogVLM2Judge


@pytest.mark.parametrize("form", ["folder", "parts", "list of parts"])
def test_round_trip(form, tmp_path):
    if form == "folder":
        source = save_sat(tmp_path / "release")
    else:
        source = save_parts(tmp_path / "release")
        assert len(list(source.iterdir())) > 4
        if form == "list of parts":
            source = sorted(source.iterdir())
    written = []
    out = convert_sat(
        source,
        tmp_path / "out",
        tokenizer=FOLDER / "image",
        dtype="float32",
        shard_bytes=200_000,
        progress=lambda done, total: written.append((done, total)),
    )
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) == len(written) > 4 and written[-1][0] == written[-1][1]
    loaded = CogVLM2Judge.load(out, dtype="float32", device="cpu")
    expected = {name: tensor.bfloat16().float() for name, tensor in weights().items()}
    state = loaded.model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    ours, expected = loaded.model.config.to_dict(), judge("image").model.config.to_dict()
    unlike = {name for name in expected if ours[name] != expected[name]}
    assert unlike <= {"_name_or_path", "max_position_embeddings"}
    assert loaded.processor.text("Is it day?") == judge("image").processor.text("Is it day?")


def test_the_type_is_kept_or_changed(tmp_path):
    source = save_sat(tmp_path / "release")
    for dtype, expected in ((None, torch.bfloat16), ("float16", torch.float16)):
        out = convert_sat(source, tmp_path / str(dtype), dtype=dtype)
        model = CogVLM2ForCausalLM.from_pretrained(out)
        assert model.dtype == expected
    with pytest.raises(ValueError, match="dtype: 'int8' is unknown"):
        convert_sat(source, tmp_path / "int8", dtype="int8")


def test_a_killed_conversion_goes_on(tmp_path, monkeypatch):
    source, out = save_sat(tmp_path / "release"), tmp_path / "out"
    save, saved = convert.save_file, []

    def save_and_stop(tensors, path, metadata):
        if len(saved) == 2:
            path.write_bytes(b"half a shard")
            raise KeyboardInterrupt
        saved.append(path.name)
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(convert, "save_file", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        convert_sat(source, out, shard_bytes=100_000)
    assert not (out / convert.INDEX).exists()
    (out / saved[1].removesuffix(".part")).write_bytes(b"damaged")  # found out and written again
    again = []
    monkeypatch.setattr(
        convert,
        "save_file",
        lambda tensors, path, metadata: (again.append(path.name), save(tensors, path, metadata)),
    )
    convert_sat(source, out, shard_bytes=100_000)
    total = len(list(out.glob("model-*.safetensors")))
    assert saved[0] not in again and saved[1] in again and len(again) == total - 1
    expected = weights()["model.layers.1.mlp.vision_mlp.up_proj.weight"].bfloat16()
    assert torch.equal(
        CogVLM2ForCausalLM.from_pretrained(out).model.layers[1].mlp.vision_mlp.up_proj.weight, expected
    )
    # another checkpoint in the same place is not mistaken for this one, nor a mixture for either
    other = {sat_name(name): tensor.bfloat16() * 2 for name, tensor in weights().items()}
    save_sat(tmp_path / "other", other)
    saved.clear()
    with monkeypatch.context() as patched:
        patched.setattr(convert, "save_file", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            convert_sat(tmp_path / "other", out, shard_bytes=100_000)
    assert not (out / convert.INDEX).exists()
    convert_sat(tmp_path / "other", out, shard_bytes=100_000)
    assert torch.equal(
        CogVLM2ForCausalLM.from_pretrained(out).model.layers[1].mlp.vision_mlp.up_proj.weight, expected * 2
    )


def test_one_shard_in_memory(tmp_path, monkeypatch):
    """The tensors alive at any time are at most those of the largest shard."""
    handed, held, read = [], [], SATCheckpoint.read

    def counted(self, name):
        tensor = read(self, name)
        handed.append(weakref.ref(tensor))
        held.append(sum(alive.nbytes for one in handed if (alive := one()) is not None))
        return tensor

    monkeypatch.setattr(SATCheckpoint, "read", counted)
    state = {sat_name(name): tensor for name, tensor in weights().items()}
    out = convert_sat(save_sat(tmp_path / "release", state), tmp_path / "out", shard_bytes=200_000)
    shards = [load_file(path) for path in out.glob("model-*.safetensors")]
    assert len(shards) > 4
    assert max(held) == max(sum(tensor.nbytes for tensor in shard.values()) for shard in shards)


def peak_of(run) -> int:
    """Bytes that Python allocates at most during a run; tensors are read into its buffers."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_tensors_that_share_a_buffer(tmp_path):
    """Training frameworks store weights as slices of one long buffer, and transposed ones with strides."""
    names = list(weights())
    buffer = torch.cat([tensor.flatten() for tensor in weights().values()])
    pieces = buffer.split([tensor.numel() for tensor in weights().values()])
    state = {sat_name(n): piece.view(weights()[n].shape) for n, piece in zip(names, pieces, strict=True)}
    state["mixins.lm.lm_head.weight"] = weights()["lm_head.weight"].t().contiguous().t()
    source, out = save_sat(tmp_path / "release", state), tmp_path / "out"
    assert peak_of(lambda: convert_sat(source, out)) < 5_000_000  # the buffer of 1 MB is not read for each
    with safe_open(out / "model-00001-of-00001.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in weights().items())


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {f"transformer.extra.{letter}": torch.zeros(1) for letter in "abcd"},
            r"CogVLMForCausalLM: 4 without a place \(first: transformer.extra.a, \S+.b, \S+.extra.c\)$",
        ),
        ({"mixins.eva.boi": None}, r"CogVLMForCausalLM: 1 missing \(first: model.vision.boi\)$"),
        (
            {"mixins.eva.boi": None, "mixins.eva.eoi": None, "mixins.eva.conv.extra": torch.zeros(1)},
            r"2 missing \(first: model.vision.boi, \S+.eoi\); 1 without a place \(first: mixins.eva.conv.e",
        ),
        ({"mixins.rotary.rotary_emb.inv_freq": None}, "no tensor for model.layers.0.self_attn.rotary_emb"),
        (
            {"mixins.eva.eoi": torch.zeros(3)},
            r"1 of the wrong shape \(first: mixins.eva.eoi is \[3\], needed \[1, 1, 64\] for model.vision.e",
        ),
        (
            {"mixins.mlp.gate_proj.1.weight": None},
            r"1 missing \(first: model.layers.1.mlp.language_mlp.gate_proj",
        ),
    ],
)
def test_every_tensor_is_placed_or_named(change, message, tmp_path):
    state = {sat_name(name): tensor for name, tensor in weights().items()} | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        convert_sat(save_sat(tmp_path / "release", state), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("age", ["today's", "older"])
def test_what_training_leaves_beside_the_weights_is_no_obstacle(age, tmp_path):
    """SAT saves the states of all random number generators beside the weights; NumPy's is an array."""
    beside = {
        "random_rng_state": random.Random(0).getstate(),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "torch_rng_state": torch.get_rng_state(),
    }
    source = save_sat(tmp_path / "release", extra=beside)
    if age == "older":
        as_older_libraries_write(source / "1" / "mp_rank_00_model_states.pt")
    found = load_file(convert_sat(source, tmp_path / "out") / "model-00001-of-00001.safetensors")
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in weights().items())


def as_older_libraries_write(path) -> None:
    """A checkpoint as the libraries of the release write it: NumPy 1's names, no table of torch 2.7's."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in records.items():
            if file.endswith("/data.pkl"):
                assert b"numpy._core." in content
                content = content.replace(b"numpy._core.", b"numpy.core.")
            if not file.endswith((".format_version", ".storage_alignment", "serialization_id")):
                archive.writestr(file, content)


def test_wrong_sources_say_so(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        convert_sat(tmp_path / "nowhere", out)
    with pytest.raises(FileNotFoundError, match="needed one SAT checkpoint .* found nothing"):
        convert_sat(tmp_path, out)
    with pytest.raises(ValueError, match="model_config.json says num_layers 3, the weights 2"):
        convert_sat(save_sat(tmp_path / "layers", config=CONFIG | {"num_layers": 3}), out)
    split = save_sat(tmp_path / "split")
    (split / "1" / "mp_rank_01_model_states.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="not split over processes, found 1/mp_rank_00.*mp_rank_01"):
        convert_sat(split, out)
    objects = save_sat(tmp_path / "objects", extra={"args": pytest.approx(1)})
    with pytest.raises(ValueError, match=r"holds more than numbers \(_pytest\S+\), so it is not read$"):
        convert_sat(objects, out)
    damaged = save_sat(tmp_path / "damaged")
    (damaged / "1" / "mp_rank_00_model_states.pt").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a checkpoint of torch 1.6 or later, or damaged"):
        convert_sat(damaged, out)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("latest", b"\xff\xfe1", "release/latest: damaged, it is not text$"),
        ("latest", b"7", "release/latest names '7': needed one SAT checkpoint .* found nothing$"),
        ("model_config.json", b"\xff\xfe1", "release/model_config.json: damaged, it is not text$"),
        ("model_config.json", b'{"num_layers": 2', r"release/model_config.json: not valid JSON \(.* line 1"),
        ("model_config.json", b"[]", "release/model_config.json: list given, needed an object$"),
        ("model_config.json", b"{}", r"model_config.json has no number at eva_args.num_attention_heads$"),
        ("model_config.json", b'{"eva_args": 2}', "has no number at eva_args.num_attention_heads$"),
    ],
)
def test_a_broken_file_beside_the_weights_is_named(file, content, message, tmp_path):
    source = save_sat(tmp_path / "release")
    (source / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        convert_sat(source, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_shards_of_earlier_conversions_go_once_the_new_ones_are_complete(tmp_path, monkeypatch):
    source, out = save_sat(tmp_path / "release"), tmp_path / "out"
    convert_sat(source, out, dtype="float32", shard_bytes=200_000)
    before = set(out.glob("model-*"))
    (out / "model-00002-of-00099.safetensors.part").write_bytes(b"half a shard")
    save_file({"theirs": torch.zeros(1)}, out / "model-00001-of-00098.safetensors")  # not of a conversion
    write = convert._write

    def stop_at_the_index(path, content):
        if path.name == convert.INDEX:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(convert, "_write", stop_at_the_index)
        with pytest.raises(KeyboardInterrupt):
            convert_sat(source, out, dtype="bfloat16", shard_bytes=200_000)
    assert before < set(out.glob("model-*"))  # until then the old model can be loaded
    convert_sat(source, out, dtype="bfloat16", shard_bytes=200_000)
    named = set(json.loads((out / convert.INDEX).read_text())["weight_map"].values())
    left = {path.name for path in out.glob("model-*")}
    assert left == named | {"model-00001-of-00098.safetensors"}
    assert CogVLM2ForCausalLM.from_pretrained(out).dtype == torch.bfloat16


@pytest.mark.parametrize("gone", [0, 2, -1])
def test_a_missing_part_is_noticed(gone, tmp_path):
    parts = sorted(save_parts(tmp_path / "release").iterdir())
    del parts[gone]
    with pytest.raises(ValueError, match="are all its parts there|damaged|no place"):
        convert_sat(parts, tmp_path / "out")


def test_a_converted_judge_answers_like_the_original(tmp_path):
    state = {sat_name(name): tensor for name, tensor in weights().items()}
    out = convert_sat(save_sat(tmp_path / "release", state), tmp_path / "out", tokenizer=FOLDER / "image")
    converted = CogVLM2Judge.load(out, dtype="float32", device="cpu")
    row = recorded("image")["questions"][0]
    question = judge("image").processor.tokenizer.decode(row[row >= 0].tolist())
    found = converted.logits([picture()], [[question]])[0, 0]
    torch.testing.assert_close(found, recorded("image")["last_logits"][0], atol=2e-4, rtol=0)


def test_a_tokenizer_is_needed_and_checked_before_anything_is_written(tmp_path):
    source, out = save_sat(tmp_path / "release"), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        convert_sat(source, out, tokenizer=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="empty: no tokenizer in this folder"):
        convert_sat(source, out, tokenizer=tmp_path / "empty")
    words = Tokenizer(models.WordLevel({"yes": 0, "no": 1, "?": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other: not the Llama 3 tokenizer .* no <\|begin_of_text\|> in it"):
        convert_sat(source, out, tokenizer=tmp_path / "other")
    assert not out.exists()
    convert_sat(source, out)
    with pytest.raises(ValueError, match="out: no tokenizer in this folder"):
        CogVLM2Judge.load(out, dtype="float32", device="cpu")
    convert_sat(source, out, tokenizer=FOLDER / "image")  # adds it
    assert CogVLM2Judge.load(out, dtype="float32", device="cpu").processor.text("Is it day?")
