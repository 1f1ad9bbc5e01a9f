"""Trains the bundled judge from nothing, in two stages. Seeded; about 15 minutes on 2 cores.

Half of the pictures are renders. The other half are renders that the bundled generator has partly drawn anew
(noised, then denoised towards a prompt that names what they show), so that the judge meets the generator's
hand and the labels stay those of the renderer: the oracle teaches nothing.

1. The tower learns the attributes of pictures through linear heads on its visual tokens, thrown away later.
2. The whole model answers questions: simple ones ("Is the object red?") and the checklist's, about prompts of
   which each attribute is right or wrong by chance.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quickstart.course import Course, random_scenes
from quickstart.judge import new_model, save, visual_tokens
from quickstart.world import ATTRIBUTES, COLUMN, prompt_of, render
from rewards.checklist import Checklist

CHECKLIST = Path(__file__).parents[1] / "configs" / "checklists" / "quickstart.yaml"
GENERATOR = Path(__file__).parent / "weights" / "generator"
PICTURES = 8192  # drawn anew by the generator
STRENGTHS = (0.05, 0.15, 0.3, 0.45)  # how far back into noise before drawing anew
BATCH = 64
SHORT, LONG = 4, 3  # questions about a picture in one step: without a prompt, about a prompt
PEAK = 2e-3  # learning rate


def to_pixels(pictures: np.ndarray) -> Tensor:
    """Return pixels [B, 3, 64, 64] in [-1, 1], as the processor does, of uint8 pictures [B, 64, 64, 3]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def redraw(generator: str | Path, scenes: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    """Return renders of scenes [B, 8] partly drawn anew by the generator: uint8 [B, 64, 64, 3]."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(generator, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures, noise = render(scenes, rng), torch.Generator().manual_seed(seed)
    for number, rows in enumerate(np.array_split(np.arange(len(scenes)), max(1, len(scenes) // 128))):
        drawn = pipeline(
            prompt=[prompt_of(scene) for scene in scenes[rows]],
            image=to_pixels(pictures[rows]) / 2 + 0.5,
            strength=STRENGTHS[number % len(STRENGTHS)],
            num_inference_steps=20,
            guidance_scale=1.0,
            generator=noise,
            output_type="np",
        ).images
        pictures[rows] = (drawn * 255).round().astype(np.uint8)
    return pictures


class AttributeHeads(nn.Module):
    """Linear heads that read every attribute off the visual tokens; used in training only."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in ATTRIBUTES.items()})

    def loss(self, visual: Tensor, scenes: Tensor) -> Tensor:
        """Return the cross-entropy, summed over attributes, of visual tokens [B, 4, D] for scenes [B, 8]."""
        present = scenes[:, COLUMN["present"]] == 1
        losses = []
        for name, head in self.heads.items():
            rows = slice(None) if name in ("background", "specks", "present") else present
            losses.append(cross_entropy(head(visual.flatten(1))[rows], scenes[rows, COLUMN[name]]))
        return torch.stack(losses).sum()


def learning_rate(step: int, steps: int) -> float:
    """Return a linear warm-up over 100 steps, then a cosine down to 0."""
    return PEAK * min(1.0, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))


def optimise(
    modules: list[nn.Module], steps: int, loss_of: Callable[[], Tensor], say: Callable[[str], None]
) -> None:
    """Take `steps` AdamW steps on `loss_of()`."""
    for module in modules:
        module.train()
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=PEAK, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            say(f"step {step + 1} of {steps}: loss {loss.item():.3f}")


def main(
    out: str | Path,
    generator: str | Path = GENERATOR,
    seed: int = 0,
    pictures: int = PICTURES,
    tower_steps: int = 1000,
    steps: int = 2000,
    threads: int = 2,
) -> None:
    """Train the judge and write its folder to `out`; sums, and so the weights, depend on `threads`."""
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {line}", flush=True)

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    course = Course(Checklist.from_yaml(CHECKLIST))
    pool_scenes = random_scenes(pictures, rng)
    pool = redraw(generator, pool_scenes, rng, seed)
    say(f"{pictures} pictures drawn anew by the generator")
    model = new_model(course.processor)
    heads = AttributeHeads(4 * model.config.text_config.hidden_size)

    def batch() -> tuple[Tensor, np.ndarray]:
        rows, fresh = rng.integers(0, pictures, BATCH // 2), random_scenes(BATCH // 2, rng)
        shown = np.concatenate([pool[rows], render(fresh, rng)])
        return visual_tokens(model, to_pixels(shown)), np.concatenate([pool_scenes[rows], fresh])

    def attribute_loss() -> Tensor:
        visual, scenes = batch()
        return heads.loss(visual, torch.from_numpy(scenes))

    def question_loss() -> Tensor:
        visual, scenes = batch()
        return (
            course.loss(model, visual, course.short(scenes, SHORT, rng))
            + course.loss(model, visual, course.prompted(scenes, LONG, rng))
            + 0.1 * heads.loss(visual, torch.from_numpy(scenes))
        )

    say(f"the tower learns attributes: {tower_steps} steps")
    optimise(
        [model.model.vision_tower, model.model.multi_modal_projector, heads], tower_steps, attribute_loss, say
    )
    say(f"the model learns to answer questions: {steps} steps")
    optimise([model, heads], steps, question_loss, say)
    save(model, course.processor, out)
    say(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.generator, arguments.seed)
