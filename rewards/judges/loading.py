"""Loading a judge's weights and processor: what can be wrong with a checkpoint, said in one line."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Left unsaid, transformers asks at the terminal whether to run the code that a repository's `auto_map` names.
NO_REMOTE_CODE = {"trust_remote_code": False}


def load_weights(model_class, path: str | Path, dtype: str, device: str, **options) -> PreTrainedModel:
    """`model_class.from_pretrained(path)` for inference; ValueError in one line where weights are wrong.

    dtype: float32 | bfloat16 | float16. device: see `pick_device`. Other options go to `from_pretrained`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"{path}: dtype {dtype!r} is unknown; allowed: {', '.join(DTYPES)}")
    place = pick_device(device)
    check_place(path)
    try:
        with quiet():
            model, info = model_class.from_pretrained(
                path,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
                **{"use_safetensors": True, **NO_REMOTE_CODE, **options},
            )
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged weights ({one_line(error)})") from None
    except pickle.UnpicklingError:  # torch's own text tells how to run the code in it
        raise ValueError(f"{path}: its pickled weights are damaged or hold more than tensors") from None
    except Exception as error:  # with another architecture's config.json, transformers fails in any way
        raise ValueError(f"{path}: this model cannot be loaded: {one_line(error)}") from None
    check_keys(path, info)
    if "device_map" not in options and not getattr(model, "quantization_method", None):
        model = model.to(place)
    return model.eval().requires_grad_(False)


def load_processor(path: str | Path, config):
    """The model's processor with its tokenizer and its image processor, without the video processor.

    Images go through PIL: the same pixels whether torchvision is there or not.
    """
    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"{path}: transformers has no processor for {type(config).__name__}")
    full = PROCESSOR_MAPPING[type(config)]

    class Processor(full):
        @classmethod
        def get_attributes(cls):
            return [name for name in full.get_attributes() if "video" not in name]

    Processor.__name__ = full.__name__
    try:
        with quiet():
            parts = {
                "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil", **NO_REMOTE_CODE),
                "tokenizer": AutoTokenizer.from_pretrained(path, **NO_REMOTE_CODE),
            }
            settings, _ = Processor.get_processor_dict(path)
            settings |= {name: None for name in full.get_attributes() if "video" in name}
            processor = Processor.from_args_and_dict(
                [parts[name] for name in Processor.get_attributes()], settings
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"{path}: its processor cannot be loaded: {one_line(error)}") from None
    processor.chat_template = processor.chat_template or parts["tokenizer"].chat_template
    return processor


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the hub; ValueError in one line where there is none."""
    check_place(path)
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("*.model")):
        raise ValueError(f"{path}: no tokenizer in this folder (tokenizer.json, tokenizer_config.json)")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(path, **NO_REMOTE_CODE)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no tokenizer there: {one_line(error)}") from None


def check_place(path: str | Path) -> None:
    """ValueError for what is no folder and cannot be a hub id either, which is a name or owner/name."""
    if not Path(path).exists() and (str(path).startswith((".", "/", "~")) or str(path).count("/") > 1):
        raise ValueError(f"{path}: no such folder")


def check_keys(path: str | Path, info: dict) -> None:
    """ValueError that names the first missing, unexpected and misshapen weights; a warning for mere
    extras.
    """
    unexpected = sorted(info["unexpected_keys"])
    shapes = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info["mismatched_keys"])
    missing = sorted(set(info["missing_keys"]) - set(shapes))
    found = [
        f"{len(keys)} {what} (first: {keys[0]})"
        for keys, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of the wrong shape"))
        if keys
    ]
    if missing or shapes:
        raise ValueError(f"{path}: weights do not match the architecture: {', '.join(found)}")
    if unexpected:
        warnings.warn(f"{path}: weights that the architecture does not use: {found[0]}", stacklevel=3)


def pick_device(device: str) -> torch.device:
    """auto: CUDA when there is one, the CPU otherwise. ValueError for a device that is none or not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = "allowed: auto, cpu, cuda, or cuda:N with a GPU's number"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device {device!r} is unknown; {allowed}")
    picked, count = torch.device(device), torch.cuda.device_count()
    if picked.type == "cuda" and (picked.index or 0) >= count:
        raise ValueError(f"device {device!r} is not here: torch finds {count} GPUs; {allowed}")
    return picked


def one_line(error: Exception, limit: int = 300) -> str:
    """An error's text as one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and loading report, which `check_keys` replaces, and what the hub
    says of each try to reach it."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    of_hub = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(of_hub)
        if bars:
            logging.enable_progress_bar()
