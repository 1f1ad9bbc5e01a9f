"""How often a bundled judge is right: `python -m quickstart.check_judge [--video]` prints the README's table.

On held-out renders its answers are compared with the truth, on samples of the generator with what the oracle
reads. Every question is asked about a prompt drawn so that yes and no are about evenly likely, and yes and no
count alike: a figure is the mean of the share of right answers where yes is right and where no is.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from generators.build import build_generator
from mpo.config import load
from quickstart import course, oracle, world
from quickstart.judge_recipe import Annotator
from quickstart.video import course as video_course
from quickstart.video import oracle as video_oracle
from quickstart.video import world as video_world
from quickstart.video.train_judge import as_stored
from rewards.build import load_judge
from rewards.checklist import PROMPT
from rewards.judges.base import Judge
from rewards.media import Media, load_media

CONFIGS = Path(__file__).parents[1] / "configs"
SEED = 20_000  # of media that no recipe has seen


def agreement(
    judge: Judge, annotator: Annotator, media: Sequence[Media], scenes: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Return, by question, how often the judge is right about media that show scenes [B, A].

    NaN where the media leave only one answer.
    """
    texts, truth = [], []
    for question in annotator.checklist.questions:
        asked = annotator.asked(scenes, question.id, rng)
        texts.append([question.text.replace(PROMPT, annotator.prompt_of(row)) for row in asked])
        truth.append(annotator.truths(scenes, asked)[question.id])
    answers = judge.answer(media, list(zip(*texts, strict=True)))
    said = torch.stack([item.p_yes for item in answers], dim=1).numpy() > 0.5
    truth = np.stack(truth)
    right = said == truth
    shares = {}
    for k, name in enumerate(annotator.checklist.ids):
        by_answer = [right[k, truth[k] == value].mean() for value in (True, False) if value in truth[k]]
        shares[name] = float(np.mean(by_answer)) if len(by_answer) == 2 else float("nan")
    return shares


def _pictures(shown: Sequence) -> list[Media]:
    return [load_media(Image.fromarray(np.asarray(picture))) for picture in shown]


def _clips(shown: Sequence) -> list[Media]:
    return [load_media(clip, f"uniform:{video_world.FRAMES}") for clip in as_stored(shown)]


def _read_pictures(media: list[Media]) -> tuple[np.ndarray, np.ndarray]:
    return oracle.read(np.stack([np.asarray(item.image) for item in media])), np.ones(len(media), bool)


def _read_clips(media: list[Media]) -> tuple[np.ndarray, np.ndarray]:
    return video_oracle.read(np.stack([item.frames for item in media]))


# Config, lessons, world, what makes media of what was drawn, what reads scenes off media (and if any).
WORLDS = {
    "image": ("quickstart.yaml", course, world, _pictures, _read_pictures),
    "video": ("quickstart_video.yaml", video_course, video_world, _clips, _read_clips),
}


def main(
    kind: str = "image", judge: Path | None = None, generator: Path | None = None, count: int = 1000
) -> None:
    """Print a Markdown table of the agreement on `count` renders and on `count` samples.

    kind: image | video. The quickstart's generator samples, as in a run, and its judge answers, unless others
    are named.
    """
    run, lessons, drawn_by, as_media, read = WORLDS[kind]
    config, rng = load(CONFIGS / run), np.random.default_rng(SEED)
    config.generator.path = str(generator or config.generator.path)
    asked = load_judge(judge or config.reward.judge, frames=config.reward.frames, batch_size=64)
    annotator, scenes = lessons.annotator(), lessons.random_scenes(count, rng)
    renders = agreement(asked, annotator, as_media(drawn_by.render(scenes, rng)), scenes, rng)
    sampler = build_generator(config.generator)
    prompts = [annotator.prompt_of(scene) for scene in rng.choice(drawn_by.all_scenes(), count)]
    shown = sampler.sample(sampler.encode_prompts(prompts), range(SEED, SEED + count), 50).media
    media = as_media(shown)
    seen, known = read(media)
    media = [item for item, kept in zip(media, known, strict=True) if kept]
    samples = agreement(asked, annotator, media, seen[known], rng)
    print("| question | renders, truth | samples, oracle |\n|---|---|---|")
    for name in annotator.checklist.ids:
        print(f"| {name} | {renders[name]:.3f} | {samples[name]:.3f} |")
    means = [np.nanmean(list(column.values())) for column in (renders, samples)]
    print(f"| mean | {means[0]:.3f} | {means[1]:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", action="store_true", help="the judge of clips")
    parser.add_argument("--judge", type=Path, help="another folder than the bundled one")
    parser.add_argument("--generator", type=Path, help="another folder than the bundled one")
    parser.add_argument("--count", type=int, default=1000, help="media of each kind")
    arguments = parser.parse_args()
    main("video" if arguments.video else "image", arguments.judge, arguments.generator, arguments.count)
