"""Trains the bundled judge from nothing: what it starts and learns from here, then `mpo train-judge`. Seeded.

1. Pictures: half of them renders, half renders that the bundled generator has partly drawn anew (noised a
   little, then denoised towards a prompt that names what they show), so that the judge meets the generator's
   hand and the labels stay those of the renderer: the oracle teaches nothing.
2. The vision tower learns the attributes of pictures through linear heads, which are thrown away.
3. Annotations: questions about the pictures, answered by the renderer, and others to validate on.
4. `mpo train-judge configs/judges/quickstart.yaml` teaches the model to answer them, and keeps the tower.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quickstart.course import annotator, random_scenes
from quickstart.judge import VISUAL_TOKENS, WIDTH, new_model, new_processor, visual_tokens
from quickstart.judge_recipe import descend, learn, write_annotations
from quickstart.recipe import Log, stopwatch, to_pixels
from quickstart.world import ATTRIBUTES, COLUMN, PROMPTED, all_scenes, prompt_of, render

TRAINING = Path(__file__).parents[1] / "configs" / "judges" / "quickstart.yaml"
GENERATOR = Path(__file__).parent / "weights" / "generator"
OUT = Path("runs/judge")  # TRAINING looks beside it for what `prepare` writes
PICTURES = 8192  # annotated renders, and as many that the generator has drawn anew
VISITS = 2  # annotations of each picture that was drawn anew: with another prompt and other questions
STRENGTHS = (0.05, 0.15, 0.3)  # how far back into noise before drawing anew; further changes shapes
VALIDATED = 256  # pictures to validate on, of each kind
TOWER_STEPS, TOWER_BATCH, PEAK = 2000, 64, 2e-3  # PEAK: learning rate


def redraw(generator: str | Path, scenes: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    """Return renders of scenes [B, 8] partly drawn anew by the generator: uint8 [B, 64, 64, 3]."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(generator, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures, noise = render(scenes, rng), torch.Generator().manual_seed(seed)
    for number, rows in enumerate(np.array_split(np.arange(len(scenes)), max(1, len(scenes) // 64))):
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
    """Linear heads that read every attribute off the visual tokens; used in training only.

    What a prompt names is also read along the embeddings of its words, so that a picture comes to lie where
    the words do that describe it, and the language model need not learn each word's counterpart.
    """

    def __init__(self, model, processor):
        super().__init__()
        embeddings, token = model.get_input_embeddings().weight, processor.tokenizer.convert_tokens_to_ids
        self.words = {name: embeddings[token(list(ATTRIBUTES[name]))].detach() for name in PROMPTED}
        width = VISUAL_TOKENS * WIDTH
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def loss(self, visual: Tensor, scenes: Tensor) -> Tensor:
        """Return the cross-entropy, summed over attributes, of visual tokens [B, 4, D] for scenes [B, 8]."""
        read = [(name, head(visual.flatten(1))) for name, head in self.heads.items()]
        read += [(name, visual.mean(1) @ words.T) for name, words in self.words.items()]
        present = scenes[:, COLUMN["present"]] == 1
        losses = []
        for name, logits in read:
            rows = slice(None) if name in ("background", "specks", "present") else present
            losses.append(cross_entropy(logits[rows], scenes[rows, COLUMN[name]]))
        return torch.stack(losses).sum()


def teach_tower(
    model, processor, drawn: tuple[np.ndarray, np.ndarray], steps: int, rng: np.random.Generator, log: Log
) -> None:
    """Teach the vision tower and the projector attributes, in place.

    drawn: pictures that the generator has drawn anew, and their scenes. Each batch is half of them, half
    renders.
    """
    heads = AttributeHeads(model, processor)
    modules = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, heads])
    modules.to(memory_format=torch.channels_last)  # faster on CPU by a tenth
    pictures, known = drawn

    def loss() -> Tensor:
        rows, fresh = rng.integers(0, len(known), TOWER_BATCH // 2), random_scenes(TOWER_BATCH // 2, rng)
        shown = np.concatenate([pictures[rows], render(fresh, rng)])
        scenes = torch.from_numpy(np.concatenate([known[rows], fresh]))
        return heads.loss(visual_tokens(model, to_pixels(shown)), scenes)

    descend("tower", modules, loss, steps, PEAK, log)
    modules.to(memory_format=torch.contiguous_format)


def prepare(
    folder: Path, generator: str | Path, seed: int, pictures: int, validated: int, tower_steps: int, log: Log
) -> None:
    """Write a judge to start from (`start/`), and annotations to train and to validate on."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    scenes = random_scenes(pictures // VISITS + validated, rng)
    drawn = redraw(generator, scenes, rng, seed)
    log(f"{len(drawn)} pictures drawn anew by the generator")
    teacher = annotator()
    processor = new_processor(teacher.words(all_scenes()))
    model = new_model(processor)
    teach_tower(model, processor, (drawn[validated:], scenes[validated:]), tower_steps, rng, log)
    processor.save_pretrained(folder / "start")
    model.save_pretrained(folder / "start")
    sides = {
        "train": (np.tile(drawn[validated:], (VISITS, 1, 1, 1)), np.tile(scenes[validated:], (VISITS, 1))),
        "validation": (drawn[:validated], scenes[:validated]),
    }
    for name, (redrawn, known) in sides.items():
        fresh = random_scenes(len(known), rng)
        shown = np.concatenate([redrawn, render(fresh, rng)])
        annotated = teacher.annotate(np.concatenate([known, fresh]), rng)
        write_annotations(folder / f"{name}.jsonl", annotated, shown, save_picture, ".png")
    log(f"annotated {len(sides['train'][1]) * 2} pictures")


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write a picture [64, 64, 3]."""
    Image.fromarray(picture).save(path, compress_level=1)


def main(
    out: str | Path = OUT,
    generator: str | Path = GENERATOR,
    seed: int = 0,
    pictures: int = PICTURES,
    validated: int = VALIDATED,
    tower_steps: int = TOWER_STEPS,
    overrides: Sequence[str] = (),
    threads: int = 2,
) -> None:
    """Train the judge and write its folder to `out`; sums, and so the weights, depend on `threads`.

    overrides: settings of `mpo train-judge`, `key=value`. What it starts and learns from stays beside `out`;
    `mpo train-judge configs/judges/quickstart.yaml` finds it where `out` is runs/judge.
    """
    log = stopwatch()
    torch.set_num_threads(threads)
    options = {"generator": str(generator), "seed": seed, "pictures": pictures, "validated": validated}
    options |= {"tower_steps": tower_steps}
    report = learn(
        Path(out), TRAINING, options | {"threads": threads}, partial(prepare, **options, log=log), overrides
    )
    log(f"wrote {out}: balanced accuracy {report.balanced:.3f} on {2 * validated} validation pictures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.out, arguments.generator, arguments.seed, threads=arguments.threads)
