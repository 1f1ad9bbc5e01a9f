"""A made-up SAT checkpoint of the tiny image model, with SAT's names and in the forms of the release."""

import json
import re
import tarfile

import torch
from golden_cogvlm2 import FOLDER
from safetensors.torch import load_file

CONFIG = {
    "num_layers": 2,
    "hidden_size": 64,
    "inner_hidden_size": 96,
    "num_attention_heads": 4,
    "num_multi_query_heads": 2,
    "layernorm_epsilon": 1e-5,
    "image_length": 4,
    "eva_args": {"num_layers": 2, "hidden_size": 32, "inner_hidden_size": 48, "num_attention_heads": 2},
}
ATTENTION = "transformer.layers.{}.attention"
LAYERS = {  # ours, within a layer: SAT's
    "input_layernorm.weight": "transformer.layers.{}.input_layernorm.weight",
    "post_attention_layernorm.weight": "transformer.layers.{}.post_attention_layernorm.weight",
    "self_attn.language_expert_query_key_value.weight": f"{ATTENTION}.query_key_value.weight",
    "self_attn.language_expert_dense.weight": f"{ATTENTION}.dense.weight",
    "self_attn.vision_expert_query_key_value.weight": "mixins.rotary.vision_query_key_value_list.{}.weight",
    "self_attn.vision_expert_query_key_value.bias": "mixins.rotary.vision_query_key_value_list.{}.bias",
    "self_attn.vision_expert_dense.weight": "mixins.rotary.vision_dense_list.{}.weight",
    "self_attn.rotary_emb.inv_freq": "mixins.rotary.rotary_emb.inv_freq",
    "mlp.language_mlp.up_proj.weight": "transformer.layers.{}.mlp.dense_h_to_4h.weight",
    "mlp.language_mlp.down_proj.weight": "transformer.layers.{}.mlp.dense_4h_to_h.weight",
    "mlp.language_mlp.gate_proj.weight": "mixins.mlp.gate_proj.{}.weight",
    "mlp.vision_mlp.up_proj.weight": "mixins.mlp.vision_dense_h_to_4h_list.{}.weight",
    "mlp.vision_mlp.down_proj.weight": "mixins.mlp.vision_dense_4h_to_h_list.{}.weight",
    "mlp.vision_mlp.gate_proj.weight": "mixins.mlp.vision_gate_proj.{}.weight",
}
WHOLE = {
    "model.embed_tokens.weight": "transformer.word_embeddings.weight",
    "model.norm.weight": "transformer.final_layernorm.weight",
    "lm_head.weight": "mixins.lm.lm_head.weight",
}
VISION = (
    ("patch_embedding.proj", "vit_model.mixins.patch_embedding.proj"),
    ("patch_embedding.cls_embedding", "vit_model.transformer.word_embeddings.weight"),
    ("patch_embedding.position_embedding", "vit_model.transformer.position_embeddings"),
    ("mlp.fc1", "mlp.dense_h_to_4h"),
    ("mlp.fc2", "mlp.dense_4h_to_h"),
    ("transformer.layers.", "vit_model.transformer.layers."),
)


def sat_name(name: str) -> str:
    if name in WHOLE:
        return WHOLE[name]
    if match := re.match(r"model\.layers\.(\d+)\.(.+)", name):
        return LAYERS[match[2]].format(match[1])
    name = name.removeprefix("model.vision.")
    for ours, theirs in VISION:
        name = name.replace(ours, theirs)
    return f"mixins.eva.{name}"


def weights() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "image" / "model.safetensors")


def save_sat(folder, state=None, config=CONFIG, extra=None):
    """A SAT checkpoint of the tiny image model, in bfloat16 unless `state` is given."""
    state = state or {sat_name(name): tensor.bfloat16() for name, tensor in weights().items()}
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    (folder / "model_config.json").write_text(json.dumps(config))
    torch.save(
        {"module": state, "iteration": 1, **(extra or {})}, folder / "1" / "mp_rank_00_model_states.pt"
    )
    return folder


def save_parts(folder, size=100_003):
    """The same as parts of a tar, cut in the middle of anything, as the release has them."""
    (folder / "ckpts").mkdir(parents=True)
    with tarfile.open(folder / "all.tar", "w") as tar:
        tar.add(save_sat(folder / "sat"), "VisionReward_Image")
    data = (folder / "all.tar").read_bytes()
    (folder / "all.tar").unlink()
    for number, start in enumerate(range(0, len(data), size)):
        name = f"split_part_{chr(97 + number // 26)}{chr(97 + number % 26)}"
        (folder / "ckpts" / name).write_bytes(data[start : start + size])
    return folder / "ckpts"
