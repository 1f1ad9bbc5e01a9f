"""A diffusers pipeline from a folder or a hub id, and where and in what precision it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate.utils.memory import should_reduce_batch_size
from diffusers import DiffusionPipeline
from huggingface_hub.constants import HF_HUB_CACHE
from torch import nn
from transformers import PreTrainedModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(
    kind: type[DiffusionPipeline],
    config: Any,
    dtypes: Mapping[str, torch.dtype],
    overrides: Mapping[str, Any],
    absent: Sequence[str] = (),
) -> DiffusionPipeline:
    """The pipeline that the generator settings `config` name, on the CPU.

    dtypes: by component, `default` for the others. overrides: arguments of every `from_pretrained` of the
    family. absent: components that stay on disk and are None. FileNotFoundError for a path that is neither a
    pipeline's folder nor a hub id within reach; ValueError for a pipeline of another class.
    """
    path = config.path
    folder = Path(path) if Path(path).is_dir() else _download(kind, path, overrides, absent)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"generator.path={path}: no model_index.json, so no diffusers pipeline")
    index = kind.load_config(folder)
    if index.get("_class_name") != kind.__name__:
        raise ValueError(
            f"generator.path={path} is a {index.get('_class_name')}, "
            f"generator.family={config.family} needs a {kind.__name__}"
        )
    components = {**overrides, **dict.fromkeys(absent)}
    if "vae" in absent:  # a shell without weights, from which the pipeline reads its scale factors
        autoencoder = getattr(diffusers, index["vae"][1])
        with torch.device("meta"):
            components["vae"] = autoencoder.from_config(autoencoder.load_config(folder, subfolder="vae"))
    try:
        components |= _text_encoders(folder, index, dtypes, components)
        pipe = kind.from_pretrained(folder, dtype=dict(dtypes), use_safetensors=True, **components)
    except Exception as error:  # of several libraries, each with its own
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            raise  # told by who asked for it
        told = FileNotFoundError if isinstance(error, OSError) else ValueError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise told(f"generator.path={path}: cannot be loaded: {reason}") from error
    for name in absent:
        setattr(pipe, name, None)
    return pipe


def _text_encoders(
    folder: Path, index: Mapping[str, Any], dtypes: Mapping[str, torch.dtype], given: Mapping[str, Any]
) -> dict[str, PreTrainedModel]:
    """The models of transformers that the pipeline names and `given` lacks. ValueError for one whose file
    lacks weights, which transformers would draw at random."""
    found = {}
    for name, entry in index.items():
        named = isinstance(entry, list) and entry[0] == "transformers"
        kind = getattr(transformers, entry[1], None) if named else None
        if name in given or not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            continue
        found[name], info = kind.from_pretrained(
            folder / name,
            dtype=dtypes.get(name, dtypes["default"]),
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{name} lacks {len(missing)} of its weights (first: {missing[0]})")
    return found


def _download(
    kind: type[DiffusionPipeline], path: str, overrides: Mapping[str, Any], absent: Sequence[str]
) -> Path:
    """The folder in the hub's cache, filled from the hub where something is missing."""
    components = {**overrides, **dict.fromkeys(name for name in absent if name != "vae")}
    try:
        return Path(kind.download(path, use_safetensors=True, **components))
    except OSError as error:
        raise FileNotFoundError(
            f"generator.path={path}: no such folder, and a model neither of the hub "
            f"(as far as it can be reached) nor of its cache {HF_HUB_CACHE}: {str(error).splitlines()[0]}"
        ) from error


def dtype_of(name: str) -> torch.dtype:
    """The precision that generator.dtype names; ValueError with those that are allowed."""
    if name not in _DTYPES:
        raise ValueError(f"generator.dtype={name}: not one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def device_name(name: str) -> str:
    """ "cuda" or "cpu" for "auto", by what is there."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def precision(model: nn.Module) -> torch.dtype:
    """What `model.dtype` says, which first walks through all modules for hooks that nothing here sets."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    names = (entry for entry in model.named_parameters() if not any(part in entry[0] for part in kept))
    return next(parameter.dtype for _, parameter in names)
