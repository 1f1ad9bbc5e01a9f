"""The tuned model's card: what it was made of, what changed, and what it is not known to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mpo.artifacts import Run
from mpo.config import RunConfig, to_yaml
from mpo.objectives import in_words

_PAGES = Path(__file__).parent / "pages"
_VIDEO = ("cogvideox", "wan")


def model_card(run: Run) -> str:
    """The card (Markdown with the hub's metadata) of a run that has been evaluated."""
    config, made = run.config, run.artifacts
    evaluation = json.loads((made.evaluation.folder / "evaluation.json").read_text())
    pairs = made.pairs.facts()
    environment = Environment(
        loader=FileSystemLoader(_PAGES), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    body = environment.get_template("card.md.jinja").render(
        name=config.name,
        kind=f"LoRA adapter (rank {config.train.lora.rank})" if _is_lora(config) else "Full fine-tune",
        config=config,
        usage=_usage(run),
        evaluation=evaluation,
        rows=lambda found: {"total": found["total"], **found["dimensions"]},
        train_prompts=len(run.train_prompts),
        heldout_prompts=len(run.heldout_prompts),
        pairs=pairs["pairs"],
        pair_prompts=pairs["prompts"],
        roles={name: in_words(dim) for name, dim in config.objectives.dims.items()},
        judge_note=_judge_note(config, evaluation),
        fell=[
            f"{name} (by the {reward})" for reward, part in evaluation.items() for name in part["regressions"]
        ],
        settings=to_yaml(config),
    )
    return f"---\n{_metadata(config).to_yaml()}\n---\n\n{body}"


def _is_lora(config: RunConfig) -> bool:
    return config.train.mode == "lora"


def _metadata(config: RunConfig) -> ModelCardData:
    """What the hub reads. A base model that lies in a folder here has no name there."""
    base = config.generator.path
    return ModelCardData(
        base_model=None if Path(base).exists() else base,
        library_name="diffusers",
        pipeline_tag="text-to-video" if config.generator.family in _VIDEO else "text-to-image",
        tags=["diffusion-dpo", "mpo", "visionreward", *(["lora"] if _is_lora(config) else [])],
    )


def _usage(run: Run) -> str:
    config, folder = run.config.generator, run.folder
    length = config.options.get("max_sequence_length")  # of the prompt, which not every family takes
    lines = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipe = DiffusionPipeline.from_pretrained("{config.path}", dtype=torch.{config.dtype})',
        f'pipe.load_lora_weights("{folder / "adapter"}")',
        f'pipe("a prompt"{f", max_sequence_length={length}" if length else ""})',
    ]
    if not _is_lora(run.config):
        lines[3:5] = [
            f'pipe = DiffusionPipeline.from_pretrained("{folder / "pipeline"}", dtype=torch.{config.dtype})'
        ]
    return "\n".join(lines)


def _judge_note(config: RunConfig, evaluation: dict[str, Any]) -> str:
    if config.pairs.source:
        return "They are a judge's and not people's, whose preferences the model was trained on."
    note = (
        "The judge that made the preferences also measured the change: what only pleases it counts as a gain"
    )
    if "oracle" in evaluation:
        return f"{note}; the oracle, which took no part in training, is the check on that."
    return f"{note}; look at the samples, and ask people or another reward before relying on it."
