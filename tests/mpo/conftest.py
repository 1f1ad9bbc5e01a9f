"""A whole run on tiny random models of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tiny_pipelines import generator_config
from tiny_vlms import make_model

from generators.build import build_generator
from mpo.preference_data import PreferencePairs

QUESTIONS = ("clear", "very clear", "the [[prompt]]", "an image", "question", "yes or no")


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory, tiny_pipeline) -> Path:
    """A folder with a judge, a checklist of 3 dimensions and 6 questions, awkward prompts."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model("llava", folder / "judge")
    questions = {
        f"q{i}": {"text": f"Is it {q}?", "dimension": f"d{i % 3}", "subdimension": f"s{i}", "weight": 1.0}
        for i, q in enumerate(QUESTIONS)
    }
    checklist = {"name": "tiny", "coding": "signed", "reduction": "sum", "questions": questions}
    (folder / "checklist.yaml").write_text(yaml.safe_dump(checklist))
    (folder / "train.jsonl").write_text(
        '{"prompt": "a \\"quoted\\" cat\'s ${hat}"}\n{"prompt": "two\\nlines"}\n{"prompt": "a 🦊 in 雪"}\n'
        f'{{"prompt": "{"long " * 400}"}}\n{{"prompt": "plain"}}\n',
        encoding="utf-8",
    )
    (folder / "heldout.txt").write_text("first\nsecond\nthird\n")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_inputs, tiny_pipeline) -> Callable[..., Path]:
    """Writes the config of a tiny run that lies in a folder; keywords replace keys of its sections."""

    def write(folder: Path, **changes: dict) -> Path:
        config = {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "store": str(folder / "store"),
            "prompts": {
                "train": str(tiny_inputs / "train.jsonl"),
                "heldout": str(tiny_inputs / "heldout.txt"),
            },
            "generator": {"path": str(tiny_pipeline("stable_diffusion")), "steps": 2, "device": "cpu"},
            "generate": {"candidates": 4, "batch_size": 4, "shard_size": 2},
            "reward": {
                "judge": str(tiny_inputs / "judge"),
                "checklist": str(tiny_inputs / "checklist.yaml"),
                "min_mass": 0.0,  # a random judge's probability goes anywhere
                "device": "cpu",
            },
            "train": {
                "steps": 4,
                "batch_size": 4,
                "micro_batch_size": 2,
                "save_steps": 2,
                "lora": {"rank": 2},
            },
            "evaluate": {"bootstrap": 100},
        }
        for section, values in changes.items():
            config[section] = config[section] | values
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture(scope="session")
def pairs(tiny_pipeline) -> PreferencePairs:
    """Six pairs of two prompts' samples, the reward's gap from .1 to .6."""
    generator = build_generator(generator_config("stable_diffusion", tiny_pipeline("stable_diffusion")))
    conditioning = generator.encode_prompts(["a red circle", "b", "two"])
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    winner, loser = [0, 1, 2, 4, 5, 6], [3, 2, 3, 7, 4, 7]
    names = [f"{a}>{b}" for a, b in zip(winner, loser, strict=True)]
    gap = [0.1 * i for i in range(1, 7)]
    return PreferencePairs(latents, conditioning, winner, loser, [0, 0, 0, 1, 1, 1], names, gap, "samples")
