"""From the released VisionReward-Image, a checkpoint of SwissArmyTransformer (SAT), to safetensors."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from rewards.cogvlm2.configuration import CogVLM2Config
from rewards.cogvlm2.modeling import CogVLMForCausalLM
from rewards.cogvlm2.sat import SATCheckpoint, open_sat
from rewards.judges.loading import load_tokenizer

INDEX = "model.safetensors.index.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_SPECIAL = {  # those that a prompt needs beside text
    "bos_token_id": "<|begin_of_text|>",
    "eos_token_id": "<|end_of_text|>",
    "pad_token_id": "<|reserved_special_token_0|>",
}
_LAYER, _TOWER, _EVA = r"transformer\.layers\.(\d+)\.", r"mixins\.eva\.vit_model\.", "model.vision."
RULES = tuple(  # SAT's names, whole, to ours
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"transformer\.word_embeddings\.weight", "model.embed_tokens.weight"),
        (r"transformer\.final_layernorm\.weight", "model.norm.weight"),
        (r"mixins\.lm\.lm_head\.weight", "lm_head.weight"),
        (_LAYER + r"(input|post_attention)_layernorm\.weight", r"model.layers.\1.\2_layernorm.weight"),
        (
            _LAYER + r"attention\.(query_key_value|dense)\.weight",
            r"model.layers.\1.self_attn.language_expert_\2.weight",
        ),
        (_LAYER + r"mlp\.dense_h_to_4h\.weight", r"model.layers.\1.mlp.language_mlp.up_proj.weight"),
        (_LAYER + r"mlp\.dense_4h_to_h\.weight", r"model.layers.\1.mlp.language_mlp.down_proj.weight"),
        (r"mixins\.mlp\.gate_proj\.(\d+)\.weight", r"model.layers.\1.mlp.language_mlp.gate_proj.weight"),
        (
            r"mixins\.mlp\.vision_dense_h_to_4h_list\.(\d+)\.weight",
            r"model.layers.\1.mlp.vision_mlp.up_proj.weight",
        ),
        (
            r"mixins\.mlp\.vision_dense_4h_to_h_list\.(\d+)\.weight",
            r"model.layers.\1.mlp.vision_mlp.down_proj.weight",
        ),
        (r"mixins\.mlp\.vision_gate_proj\.(\d+)\.weight", r"model.layers.\1.mlp.vision_mlp.gate_proj.weight"),
        (
            r"mixins\.rotary\.vision_(query_key_value|dense)_list\.(\d+)\.(weight|bias)",
            r"model.layers.\2.self_attn.vision_expert_\1.\3",
        ),
        (r"mixins\.rotary\.rotary_emb\.inv_freq", r"model.layers.*.self_attn.rotary_emb.inv_freq"),
        (r"mixins\.eva\.(boi|eoi|(?:conv|linear_proj)\..+)", _EVA + r"\1"),
        (_TOWER + r"mixins\.patch_embedding\.(proj\..+)", _EVA + r"patch_embedding.\1"),
        (_TOWER + r"transformer\.word_embeddings\.weight", _EVA + "patch_embedding.cls_embedding"),
        (
            _TOWER + r"transformer\.position_embeddings\.weight",
            _EVA + "patch_embedding.position_embedding.weight",
        ),
        (_TOWER + r"transformer\.(layers\.\d+\.mlp)\.dense_h_to_4h\.(.+)", _EVA + r"transformer.\1.fc1.\2"),
        (_TOWER + r"transformer\.(layers\.\d+\.mlp)\.dense_4h_to_h\.(.+)", _EVA + r"transformer.\1.fc2.\2"),
        (
            _TOWER
            + r"transformer\.(layers\.\d+\.(?:attention|input_layernorm|post_attention_layernorm)\..+)",
            _EVA + r"transformer.\1",
        ),
    )
)


def convert_sat(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the model of a SAT checkpoint to `out` as `from_pretrained` loads it, and returns that folder.

    source: a folder, a tar, or the parts of a tar, see `open_sat`. tokenizer: folder or hub id whose
    tokenizer is put beside the weights, since the release has none (a Llama 3 tokenizer, as in
    zai-org/cogvlm2-llama3-chat-19B). dtype: bfloat16 | float16 | float32; None: as stored. At most one shard
    is in memory; a second call goes on after the last whole shard. Shards of earlier conversions are removed
    once the new ones are complete. progress: told the bytes written so far and all in all.
    FileNotFoundError where there is no checkpoint; ValueError for a damaged one, for weights that do not
    match the model, and where the disk is too small.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is unknown; allowed: {', '.join(DTYPES)}")
    out = Path(out)
    with open_sat(source) as checkpoint:
        vocabulary = None if tokenizer is None else load_tokenizer(tokenizer)
        names = our_names(checkpoint)
        config = our_config(checkpoint, names)
        _check(checkpoint, names, config)
        if vocabulary is not None:
            _set_ids(config, vocabulary, str(tokenizer))
        tensors = {name: checkpoint.tensors[theirs] for name, theirs in names.items()}
        stored = Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0][0]
        config.dtype = DTYPES[dtype] if dtype else stored
        sizes = {name: tensor.numel() * config.dtype.itemsize for name, tensor in tensors.items()}
        shards = _shards(sizes, shard_bytes)
        out.mkdir(parents=True, exist_ok=True)
        _write_shards(checkpoint, names, shards, sizes, config.dtype, out, progress)
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    if vocabulary is not None:
        vocabulary.save_pretrained(out)
    config.save_pretrained(out)
    _write(out / INDEX, lambda path: path.write_text(json.dumps(index, indent=1)))
    _remove_others(out, shards)
    return out


def our_names(checkpoint: SATCheckpoint) -> dict[str, str]:
    """Our name of every tensor to SAT's, in SAT's order; ValueError for a tensor that no rule names."""
    names: dict[str, str] = {}
    strays = []
    for theirs in checkpoint.tensors:
        ours = next((match.expand(to) for rule, to in RULES if (match := rule.fullmatch(theirs))), None)
        if ours is None:
            strays.append(theirs)
        else:
            names[ours] = theirs
    if strays:
        raise ValueError(_mismatch(checkpoint, {"without a place": strays}))
    shared = [name for name in names if ".*." in name]  # one tensor there, one a layer here
    for name in shared:
        theirs = names.pop(name)
        names.update(
            (name.replace("*", str(layer)), theirs) for layer in range(_count(names, "model.layers"))
        )
    return names


def our_config(checkpoint: SATCheckpoint, names: dict[str, str]) -> CogVLM2Config:
    """The configuration that the shapes of the weights imply; the tower's heads and epsilons are SAT's."""

    def shape(name: str) -> torch.Size:
        if name not in names:
            raise ValueError(f"{checkpoint.name}: no tensor for {name}, which tells the model's size")
        return checkpoint.tensors[names[name]].shape

    sat = checkpoint.config
    eva = sat.get("eva_args")
    if not isinstance(eva, dict) or not isinstance(eva.get("num_attention_heads"), int):
        raise ValueError(
            f"{checkpoint.name}: its model_config.json has no number at eva_args.num_attention_heads"
        )
    vocabulary, width = shape("model.embed_tokens.weight")
    head_dim = 2 * shape("model.layers.0.self_attn.rotary_emb.inv_freq")[0]
    fused = shape("model.layers.0.self_attn.language_expert_query_key_value.weight")[0]
    places, tower = shape("model.vision.patch_embedding.position_embedding.weight")
    patch = shape("model.vision.patch_embedding.proj.weight")[-1]
    config = CogVLM2Config(
        architectures=[CogVLMForCausalLM.__name__],
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape("model.layers.0.mlp.language_mlp.up_proj.weight")[0],
        num_hidden_layers=_count(names, "model.layers"),
        num_attention_heads=width // head_dim,
        num_multi_query_heads=(fused - width) // (2 * head_dim),
        rms_norm_eps=sat.get("layernorm_epsilon", 1e-5),
        vision_config={
            "hidden_size": tower,
            "image_size": patch * math.isqrt(places - 1),
            "patch_size": patch,
            "num_positions": places,
            "num_hidden_layers": _count(names, "model.vision.transformer.layers"),
            "num_heads": eva["num_attention_heads"],
            "intermediate_size": shape("model.vision.transformer.layers.0.mlp.fc1.weight")[0],
            "layer_norm_eps": eva.get("layernorm_epsilon", 1e-6),
        },
    )
    vision = config.vision_config
    for said, key, found in (
        (sat, "num_layers", config.num_hidden_layers),
        (sat, "hidden_size", width),
        (sat, "inner_hidden_size", config.intermediate_size),
        (sat, "num_attention_heads", config.num_attention_heads),
        (sat, "num_multi_query_heads", config.num_multi_query_heads),
        (eva, "num_layers", vision.num_hidden_layers),
        (eva, "hidden_size", tower),
        (eva, "inner_hidden_size", vision.intermediate_size),
    ):
        if said.get(key, found) != found:
            raise ValueError(
                f"{checkpoint.name}: model_config.json says {key} {said[key]}, the weights {found}"
            )
    return config


def _set_ids(config: CogVLM2Config, vocabulary: PreTrainedTokenizerBase, name: str) -> None:
    """Puts the ids of Llama 3's special tokens into `config`; ValueError for another kind of tokenizer."""
    known = vocabulary.get_vocab()
    for field, token in _SPECIAL.items():
        if not known.get(token, config.vocab_size) < config.vocab_size:
            raise ValueError(f"{name}: not the Llama 3 tokenizer of this model: no {token} in it")
        setattr(config, field, known[token])


def _count(names, prefix: str) -> int:
    """Layers under a prefix."""
    return len({name[len(prefix) + 1 :].split(".")[0] for name in names if re.match(rf"{prefix}\.\d", name)})


def _check(checkpoint: SATCheckpoint, names: dict[str, str], config: CogVLM2Config) -> None:
    """ValueError unless every weight of the model is there, in its shape, and none is left over."""
    with torch.device("meta"):
        expected = {name: value.shape for name, value in CogVLMForCausalLM(config).state_dict().items()}
    found = {name: checkpoint.tensors[theirs].shape for name, theirs in names.items()}
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "without a place": sorted(names[name] for name in found.keys() - expected.keys()),
        "of the wrong shape": [
            f"{names[name]} is {list(found[name])}, needed {list(expected[name])} for {name}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ],
    }
    if any(faults.values()):
        raise ValueError(_mismatch(checkpoint, faults))


def _mismatch(checkpoint: SATCheckpoint, faults: dict[str, list[str]]) -> str:
    """One line that says how many tensors have each fault, and names the first three."""
    listed = "; ".join(
        f"{len(names)} {fault} (first: {', '.join(names[:3])})" for fault, names in faults.items() if names
    )
    return f"{checkpoint.name}: weights do not match {CogVLMForCausalLM.__name__}: {listed}"


def _shards(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """File names and the tensors that go into each: as many as fit into `limit` bytes, in order."""
    parts: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room:
            parts.append([])
            room = limit
        parts[-1].append(name)
        room -= size
    count = len(parts)
    return {f"model-{k:05d}-of-{count:05d}.safetensors": part for k, part in enumerate(parts, start=1)}


def _write_shards(checkpoint, names, shards, sizes, dtype, out: Path, progress) -> None:
    """Writes the shards that are not there yet, one after the other."""
    label = {"format": "pt", "source": f"{checkpoint.digest} {dtype}"}
    todo = [file for file, part in shards.items() if not _is_whole(out / file, part, label)]
    needed, free = sum(sizes[name] for file in todo for name in shards[file]), shutil.disk_usage(out).free
    if needed > free:
        raise ValueError(f"{out}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    if any((out / file).exists() for file in todo):
        (out / INDEX).unlink(missing_ok=True)  # until the new one it would name shards of two conversions
    total, done = sum(sizes.values()), 0
    for file, part in shards.items():
        if file in todo:
            tensors = {name: checkpoint.read(names[name]).to(dtype).contiguous() for name in part}
            _write(out / file, lambda path, tensors=tensors: save_file(tensors, path, metadata=label))
            del tensors
        done += sum(sizes[name] for name in part)
        if progress is not None:
            progress(done, total)


def _is_whole(path: Path, names: list[str], label: dict[str, str]) -> bool:
    """Whether an earlier call wrote this shard from the same checkpoint."""
    found, keys = _read_header(path) if path.is_file() else ({}, set())
    return found == label and keys == set(names)


def _remove_others(out: Path, shards: Collection[str]) -> None:
    """Removes what earlier conversions wrote and the index does not name; files of other origin stay."""
    for path in out.glob("model-*-of-*.safetensors*"):
        if path.name not in shards and (path.suffix == ".part" or "source" in _read_header(path)[0]):
            path.unlink()


def _read_header(path: Path) -> tuple[dict[str, str], set[str]]:
    """The label of a shard and the names of its tensors; nothing of a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, set(file.keys())
    except SafetensorError:
        return {}, set()


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Under a temporary name first, so that a file that is there is whole."""
    temporary = path.with_name(f"{path.name}.part")
    write(temporary)
    temporary.replace(path)
