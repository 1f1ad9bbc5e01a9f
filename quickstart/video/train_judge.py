"""Trains the bundled video judge from nothing: what it starts and learns from here, then `mpo train-judge`.

Seeded. Half of the clips are renders. The other half are renders that the bundled generator has partly drawn
anew (noised, then denoised towards a prompt that names what they show). All are stored as MP4, so that the
judge meets what a run will show it, and the labels stay those of the renderer: the oracle teaches nothing.

1. The tower and the decoder learn what clips show through linear heads, thrown away later: what each frame
   shows from its visual tokens, what the clip shows from the decoder's state of its last token.
2. Annotations: questions about the clips, answered by the renderer, and others to validate on.
3. `mpo train-judge configs/judges/quickstart_video.yaml` teaches the model to answer them.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import CogVideoXVideoToVideoPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import PreTrainedTokenizerFast

from generators.saving import save_media
from quickstart.judge_recipe import descend, learn, write_annotations
from quickstart.recipe import Log, stopwatch
from quickstart.video.course import annotator, random_scenes
from quickstart.video.judge import clip_state, embed_clips, new_model, new_tokenizer
from quickstart.video.train_generator import PROMPT_TOKENS
from quickstart.video.world import (
    ATTRIBUTES,
    COLUMN,
    FRAMES,
    PROMPTED,
    SIZE,
    Tracks,
    all_scenes,
    animate,
    draw,
    prompt_of,
    render,
)
from rewards.cogvlm2.modeling import CogVLMVideoForCausalLM
from rewards.cogvlm2.processing import CogVLM2Processor, frame_pixels
from rewards.media import load_media

TRAINING = Path(__file__).parents[2] / "configs" / "judges" / "quickstart_video.yaml"
GENERATOR = Path(__file__).parent / "weights" / "generator"
OUT = Path("runs/video_judge")  # TRAINING looks beside it for what `prepare` writes
CLIPS = 4096  # annotated renders, and as many that the generator has drawn anew
VISITS = 2  # annotations of each clip that was drawn anew: with another prompt and other questions
STRENGTHS = (0.1, 0.2, 0.35)  # how far back into noise before drawing anew
VALIDATED = 192  # clips to validate on, of each kind
SEEING_STEPS, SEEING_BATCH, PEAK = 1200, 32, 2e-3  # PEAK: learning rate
FRAME_RATE = 8  # of the MP4 files


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


def save_clip(clip: np.ndarray, path: Path) -> None:
    """Write a clip [9, 32, 32, 3] as MP4, as the samples of a run are stored."""
    save_media(clip, path, FRAME_RATE)


def as_stored(clips: np.ndarray) -> np.ndarray:
    """Return clips uint8 [B, 9, 32, 32, 3] as they come back from MP4: a run reads its samples so."""
    read = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for clip in clips:
            save_clip(clip, path)
            read.append(load_media(path, f"uniform:{FRAMES}").frames)
    return np.stack(read)


class Heads(nn.Module):
    """Linear heads that read frames off visual tokens, and clips off the decoder; used in training only.

    What a prompt names is also read along the embeddings of its words, so that a clip comes to lie where the
    words do that describe it, and the decoder need not learn each word's counterpart.
    """

    def __init__(self, model: CogVLMVideoForCausalLM, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        embeddings, token = model.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids
        self.words = {name: embeddings[token(list(ATTRIBUTES[name]))].detach() for name in PROMPTED}
        width = model.config.hidden_size
        of_frame = ("shape", "colour", "background")
        self.frame = nn.ModuleDict({name: nn.Linear(4 * width, len(ATTRIBUTES[name])) for name in of_frame})
        self.numbers = nn.Linear(4 * width, 3)  # centre (x, y) and opacity
        self.clip = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in ATTRIBUTES.items()})

    def loss(self, clip: Tensor, state: Tensor, tracks: Tracks, scenes: np.ndarray) -> Tensor:
        """Return the loss of reading frames off embeddings [B, P, D] and clips off states [B, D], summed."""
        tokens = (clip.shape[1] - 1) // FRAMES  # of a frame: begin, 4 patches, end, number
        visual = clip[:, 1:].unflatten(1, (FRAMES, tokens))[:, :, 1:5].flatten(2)
        shown = {"shape": tracks.shape, "colour": tracks.colour}
        shown["background"] = np.repeat(tracks.background[:, None], FRAMES, axis=1)
        losses = [
            cross_entropy(head(visual).flatten(0, 1), torch.from_numpy(shown[name]).flatten())
            for name, head in self.frame.items()
        ]
        centre = torch.from_numpy((tracks.centre - SIZE / 2) / 4).float()
        numbers = torch.cat([centre, torch.from_numpy(tracks.opacity)[..., None] * 2], dim=-1)
        losses.append(3 * mse_loss(self.numbers(visual), numbers))
        truth = torch.from_numpy(scenes)
        moves = truth[:, COLUMN["freeze"]] < 2
        read = [(name, head(state)) for name, head in self.clip.items()]
        read += [(name, state @ words.T) for name, words in self.words.items()]
        for name, logits in read:
            rows = moves if name in ("direction", "speed") else slice(None)
            losses.append(cross_entropy(logits[rows], truth[rows, COLUMN[name]]))
        return torch.stack(losses).sum()


def teach_seeing(
    model,
    processor: CogVLM2Processor,
    pool: tuple[np.ndarray, Tracks, np.ndarray],
    steps: int,
    rng: np.random.Generator,
    log: Log,
) -> None:
    """Teach tower and decoder what clips show, in place.

    pool: clips that the generator has drawn anew, what their frames show, and their scenes. Each batch is
    half of them, half renders.
    """
    heads = Heads(model, processor.tokenizer)
    clips, known_tracks, known = pool

    def loss() -> Tensor:
        rows, fresh = rng.integers(0, len(known), SEEING_BATCH // 2), random_scenes(SEEING_BATCH // 2, rng)
        tracks = animate(fresh, rng)
        clip = embed_clips(model, processor, to_pixels(np.concatenate([clips[rows], draw(tracks, rng)])))
        tracks = Tracks.cat([known_tracks.rows(rows), tracks])
        scenes = np.concatenate([known[rows], fresh])
        return heads.loss(clip, clip_state(model, processor, clip), tracks, scenes)

    descend("seeing", nn.ModuleList([model.model, heads]), loss, steps, PEAK, log)


def prepare(
    folder: Path,
    generator: str | Path,
    seed: int,
    clips: int,
    validated: int,
    seeing_steps: int,
    log: Log,
) -> None:
    """Write a judge to start from (`start/`), and annotations to train and to validate on."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    scenes = random_scenes(clips // VISITS + validated, rng)
    tracks = animate(scenes, rng)
    drawn = redraw(generator, scenes, draw(tracks, rng), seed)
    log(f"{len(drawn)} clips drawn anew by the generator")
    teacher = annotator()
    tokenizer = new_tokenizer(teacher.words(all_scenes()))
    model = new_model(tokenizer)
    taught = np.arange(validated, len(scenes))
    pool = (as_stored(drawn[taught]), tracks.rows(taught), scenes[taught])
    teach_seeing(model, CogVLM2Processor(tokenizer, model.config), pool, seeing_steps, rng, log)
    tokenizer.save_pretrained(folder / "start")
    model.save_pretrained(folder / "start")
    for name, rows in {"train": np.tile(taught, VISITS), "validation": np.arange(validated)}.items():
        fresh = random_scenes(len(rows), rng)
        shown = np.concatenate([drawn[rows], render(fresh, rng)])
        annotated = teacher.annotate(np.concatenate([scenes[rows], fresh]), rng)
        write_annotations(folder / f"{name}.jsonl", annotated, shown, save_clip, ".mp4")
        log(f"annotated {len(shown)} clips: {name}")


def main(
    out: str | Path = OUT,
    generator: str | Path = GENERATOR,
    seed: int = 0,
    clips: int = CLIPS,
    validated: int = VALIDATED,
    seeing_steps: int = SEEING_STEPS,
    overrides: Sequence[str] = (),
    threads: int = 2,
) -> None:
    """Train the judge and write its folder to `out`; sums, and so the weights, depend on `threads`.

    overrides: settings of `mpo train-judge`, `key=value`. What it starts and learns from stays beside `out`;
    `mpo train-judge configs/judges/quickstart_video.yaml` finds it where `out` is runs/video_judge.
    """
    log = stopwatch()
    torch.set_num_threads(threads)
    options = {"generator": str(generator), "seed": seed, "clips": clips, "validated": validated}
    options |= {"seeing_steps": seeing_steps}
    report = learn(
        Path(out), TRAINING, options | {"threads": threads}, partial(prepare, **options, log=log), overrides
    )
    log(f"wrote {out}: balanced accuracy {report.balanced:.3f} on {2 * validated} validation clips")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.out, arguments.generator, arguments.seed, threads=arguments.threads)
