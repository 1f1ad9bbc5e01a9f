"""How often the bundled judge is right: `python -m quickstart.check_judge` prints the table of the README.

On held-out renders its answers are compared with the truth, on samples of the generator with what the oracle
reads. Every question is asked about a prompt drawn so that yes and no are about evenly likely, and yes and no
count alike: a figure is the mean of the share of right answers where yes is right and where no is.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from quickstart import oracle
from quickstart.course import random_asked, random_scenes
from quickstart.questions import truths
from quickstart.train_generator import sample
from quickstart.train_judge import CHECKLIST, GENERATOR
from quickstart.world import all_scenes, prompt_of, render
from rewards.build import load_judge
from rewards.checklist import Checklist
from rewards.judges.base import Judge
from rewards.media import load_media

JUDGE = Path(__file__).parent / "weights" / "judge"
SEED = 20_000  # of pictures that no recipe has seen
GUIDANCE = 1.3  # as in configs/quickstart.yaml


def agreement(
    judge: Judge, checklist: Checklist, pictures: np.ndarray, scenes: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Return, by question, how often the judge is right about pictures that show scenes [B, 8].

    NaN where the pictures leave only one answer.
    """
    texts, truth = [], []
    for question in checklist.questions:
        asked = random_asked(scenes, question.id, rng)
        texts.append([question.text.replace("[[prompt]]", prompt_of(row)) for row in asked])
        truth.append(truths(scenes, asked)[question.id])
    media = [load_media(Image.fromarray(picture)) for picture in pictures]
    answers = judge.answer(media, list(zip(*texts, strict=True)))
    said = torch.stack([item.p_yes for item in answers], dim=1).numpy() > 0.5
    truth = np.stack(truth)
    right = said == truth
    shares = {}
    for k, name in enumerate(checklist.ids):
        by_answer = [right[k, truth[k] == value].mean() for value in (True, False) if value in truth[k]]
        shares[name] = float(np.mean(by_answer)) if len(by_answer) == 2 else float("nan")
    return shares


def main(folder: Path = JUDGE, generator: Path = GENERATOR, count: int = 1000) -> None:
    """Print a Markdown table of the agreement on `count` renders and on `count` samples."""
    judge, checklist = load_judge(folder), Checklist.from_yaml(CHECKLIST)
    rng = np.random.default_rng(SEED)
    scenes = random_scenes(count, rng)
    renders = agreement(judge, checklist, render(scenes, rng), scenes, rng)
    pipeline = StableDiffusionPipeline.from_pretrained(generator, dtype=torch.float32)
    prompts = [prompt_of(scene) for scene in rng.choice(all_scenes(), count)]
    pictures = sample(pipeline, prompts, seed=SEED, guidance_scale=GUIDANCE)
    samples = agreement(judge, checklist, pictures, oracle.read(pictures), rng)
    print("| question | renders, truth | samples, oracle |\n|---|---|---|")
    for name in checklist.ids:
        print(f"| {name} | {renders[name]:.3f} | {samples[name]:.3f} |")
    means = [np.nanmean(list(column.values())) for column in (renders, samples)]
    print(f"| mean | {means[0]:.3f} | {means[1]:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", type=Path, default=JUDGE)
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--count", type=int, default=1000, help="pictures of each kind")
    arguments = parser.parse_args()
    main(arguments.judge, arguments.generator, arguments.count)
