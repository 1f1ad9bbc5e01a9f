"""Trains the bundled video judge from nothing, in two stages. Seeded.

Half of the clips are renders. The other half are renders that the bundled generator has partly drawn anew
(noised, then denoised towards a prompt that names what they show) and that were stored as MP4, so that the
judge meets what a run will show it and the labels stay those of the renderer: the oracle teaches nothing.

1. The tower and the decoder learn what clips show through linear heads, thrown away later: what each frame
   shows from its visual tokens, what the clip shows from the decoder's state of its last token.
2. The whole model answers questions: simple ones ("Does it move left?") and the checklist's, about prompts of
   which each attribute is right or wrong by chance.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import CogVideoXVideoToVideoPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from generators.saving import save_media
from quickstart.video.course import CHECKLIST, Course, random_scenes
from quickstart.video.judge import clip_states, decode, new_model, save
from quickstart.video.train_generator import PROMPT_TOKENS
from quickstart.video.world import ATTRIBUTES, COLUMN, FRAMES, SIZE, Tracks, animate, draw, prompt_of
from rewards.checklist import Checklist
from rewards.cogvlm2.processing import frame_pixels
from rewards.media import load_media

GENERATOR = Path(__file__).parent / "weights" / "generator"
CLIPS = 2048  # drawn anew by the generator
STRENGTHS = (0.1, 0.2, 0.35)  # how far back into noise before drawing anew
BATCH = 32
SHORT, LONG = 3, 3  # questions about a clip in one step: without a prompt, about a prompt
PEAK = 2e-3  # learning rate


def to_pixels(clips: np.ndarray) -> Tensor:
    """Return pixels [B, T, 3, 32, 32] as the processor makes them of uint8 clips [B, T, 32, 32, 3]."""
    return frame_pixels(torch.from_numpy(clips).flatten(0, 1), SIZE).unflatten(0, clips.shape[:2])


def redraw(generator: str | Path, scenes: np.ndarray, clips: np.ndarray, seed: int) -> np.ndarray:
    """Return clips uint8 [B, 9, 32, 32, 3] of scenes [B, 10], partly drawn anew by the generator."""
    pipeline = CogVideoXVideoToVideoPipeline.from_pretrained(generator, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise, drawn = torch.Generator().manual_seed(seed), []
    for number, rows in enumerate(np.array_split(np.arange(len(scenes)), max(1, len(scenes) // 32))):
        output = pipeline(
            prompt=[prompt_of(scene) for scene in scenes[rows]],
            video=[[Image.fromarray(frame) for frame in clip] for clip in clips[rows]],
            height=SIZE,
            width=SIZE,
            strength=STRENGTHS[number % len(STRENGTHS)],
            num_inference_steps=20,
            guidance_scale=1.0,
            generator=noise,
            max_sequence_length=PROMPT_TOKENS,
            output_type="np",
        )
        drawn.append((output.frames * 255).round().astype(np.uint8))
    return np.concatenate(drawn)


def as_stored(clips: np.ndarray, frame_rate: float = 8) -> np.ndarray:
    """Return clips uint8 [B, 9, 32, 32, 3] as they come back from MP4: a run reads its samples so."""
    read = []
    with TemporaryDirectory() as folder:
        for clip in clips:
            save_media(clip, f"{folder}/clip.mp4", frame_rate)
            read.append(load_media(f"{folder}/clip.mp4", f"uniform:{FRAMES}").frames)
    return np.stack(read)


class Heads(nn.Module):
    """Linear heads that read frames off visual tokens, and clips off the decoder; used in training only."""

    def __init__(self, width: int):
        super().__init__()
        self.frame = nn.ModuleDict(
            {name: nn.Linear(4 * width, len(ATTRIBUTES[name])) for name in ("shape", "colour")}
        )
        self.background = nn.Linear(4 * width, len(ATTRIBUTES["background"]))
        self.numbers = nn.Linear(4 * width, 3)  # centre (x, y) and opacity
        self.clip = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in ATTRIBUTES.items()})

    def loss(self, clip: Tensor, states: Tensor, tracks: Tracks, scenes: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the losses of reading frames off embeddings [B, P, D] and of clips off states [B, P, D]."""
        tokens = (clip.shape[1] - 1) // FRAMES  # of a frame: begin, 4 patches, end, number
        visual = clip[:, 1:].unflatten(1, (FRAMES, tokens))[:, :, 1:5].flatten(2)
        background = torch.from_numpy(tracks.background)[:, None].expand(-1, FRAMES)
        losses = [cross_entropy(self.background(visual).flatten(0, 1), background.flatten())]
        for name, head in self.frame.items():
            losses.append(
                cross_entropy(head(visual).flatten(0, 1), torch.from_numpy(getattr(tracks, name)).flatten())
            )
        centre = torch.from_numpy((tracks.centre - SIZE / 2) / 4).float()
        numbers = torch.cat([centre, torch.from_numpy(tracks.opacity)[..., None] * 2], dim=-1)
        losses.append(3 * mse_loss(self.numbers(visual), numbers))
        truth, last = torch.from_numpy(scenes), states[:, -1]
        moves = truth[:, COLUMN["freeze"]] < 2
        of_clip = [
            cross_entropy(head(last)[rows], truth[rows, COLUMN[name]])
            for name, head in self.clip.items()
            for rows in [moves if name in ("direction", "speed") else slice(None)]
        ]
        return torch.stack(losses).sum(), torch.stack(of_clip).sum()


def optimise(
    modules: list[nn.Module],
    steps: int,
    loss_of: Callable[[], tuple[Tensor, str]],
    say: Callable[[str], None],
    peak: float = PEAK,
) -> None:
    """Take `steps` AdamW steps on `loss_of()`: a warm-up over 100 steps, then a cosine down to 0."""
    weights = [weight for module in modules for weight in module.train().parameters()]
    optimizer = torch.optim.AdamW(weights, lr=peak, weight_decay=0.02, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))
        loss, words = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            say(f"step {step + 1} of {steps}: {words}")


def main(
    out: str | Path,
    generator: str | Path = GENERATOR,
    seed: int = 0,
    clips: int = CLIPS,
    seeing_steps: int = 1000,
    steps: int = 1500,
    threads: int = 2,
    batch: int = BATCH,
) -> None:
    """Train the judge and write its folder to `out`; sums, and so the weights, depend on `threads`."""
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {line}", flush=True)

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    course = Course(Checklist.from_yaml(CHECKLIST))
    pool_scenes = random_scenes(clips, rng)
    pool_tracks = animate(pool_scenes, rng)
    pool = as_stored(redraw(generator, pool_scenes, draw(pool_tracks, rng), seed))
    say(f"{clips} clips drawn anew by the generator")
    model = new_model(course.tokenizer)
    heads = Heads(model.config.hidden_size)

    def show() -> tuple[Tensor, Tracks, np.ndarray]:
        rows, fresh = rng.integers(0, clips, batch // 2), random_scenes(batch // 2, rng)
        tracks = animate(fresh, rng)
        shown = np.concatenate([pool[rows], draw(tracks, rng)])
        embeddings = clip_states(model, course.processor, to_pixels(shown))
        return (
            embeddings,
            Tracks.cat([pool_tracks.rows(rows), tracks]),
            np.concatenate([pool_scenes[rows], fresh]),
        )

    def seeing_loss() -> tuple[Tensor, str]:
        clip, tracks, scenes = show()
        states, _ = decode(model, course.processor, clip)
        frame, whole = heads.loss(clip, states, tracks, scenes)
        return frame + whole, f"frames {frame.item():.3f}, clips {whole.item():.3f}"

    def answering_loss() -> tuple[Tensor, str]:
        clip, tracks, scenes = show()
        groups = [course.short(scenes, SHORT, rng), course.prompted(scenes, LONG, rng)]
        states, answers, share = course.loss(model, clip, groups)
        frame, whole = heads.loss(clip, states, tracks, scenes)
        words = f"frames {frame.item():.3f}, clips {whole.item():.3f}"
        words += f", answers {answers.item():.3f} ({share:.3f} right)"
        return answers + 0.2 * frame + 0.2 * whole, words

    say(f"the model learns to see: {seeing_steps} steps")
    optimise([model.model, heads], seeing_steps, seeing_loss, say)
    say(f"the model learns to answer questions: {steps} steps")
    optimise([model, heads], steps, answering_loss, say)
    save(model, course.tokenizer, out)
    say(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.generator, arguments.seed)
