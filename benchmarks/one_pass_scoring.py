"""All questions about a picture in one pass, against one question after another.

The plain loop does for every question what public releases do: prepare the pixels, encode them, run the
whole prompt, read the first token. Ours encodes once, runs the prefix once, and packs the questions over its
cache. Same random weights, same process, one thread. Seconds are those of the processor, so that other
programs count little, and the two ways take turns.

    PYTHONPATH=. python benchmarks/one_pass_scoring.py
    PYTHONPATH=. python benchmarks/one_pass_scoring.py cogvlm2-video --questions 29
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from random_vlms import llava, qwen2_vl
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from rewards.cogvlm2.configuration import CogVLM2Config, CogVLM2VideoConfig
from rewards.cogvlm2.modeling import CogVLMForCausalLM, CogVLMVideoForCausalLM
from rewards.cogvlm2.processing import CogVLM2Processor
from rewards.judges.cogvlm2 import CogVLM2Judge
from rewards.media import Media, load_media

REPEATS = 3  # of our way at each number of questions; the median counts
THINGS = ("main object", "background", "person", "sky", "light", "colour", "shadow", "outline")
FLAWS = ("noise", "blur", "flicker", "banding", "smears", "stains", "jagged edges", "odd shapes")
QUESTIONS = [
    f"Is every part of the {thing} that can be seen here entirely free of visible {flaw}?"
    for thing in THINGS
    for flaw in FLAWS
]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: random weights need the length of a question and nothing else."""
    numbers = " ".join(str(number) for number in range(24))
    text = f"yes no Question: Short Answer: answer {numbers} {' '.join(QUESTIONS)}"
    words = ["<unk>", "<s>", "</s>", "<pad>", *re.findall(r"\w+|[^\w\s]", text)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def cogvlm2(modality: str) -> tuple[CogVLM2Judge, Media]:
    """A mid-sized CogVLM2 of random weights, tower 3 x 384 and decoder 4 x 512, and something to judge."""
    side = {"video": 224, "image": 672}[modality]
    config_class, model_class = {
        "video": (CogVLM2VideoConfig, CogVLMVideoForCausalLM),
        "image": (CogVLM2Config, CogVLMForCausalLM),
    }[modality]
    vision = {"hidden_size": 384, "num_hidden_layers": 3, "num_heads": 6, "intermediate_size": 3072}
    config = config_class(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_multi_query_heads=2,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        vision_config={**vision, "image_size": side, "num_positions": (side // 14) ** 2 + 1},
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    judge = CogVLM2Judge(model, CogVLM2Processor(word_tokenizer(), config), f"cogvlm2-{modality}")
    frames = np.random.default_rng(0).integers(0, 256, (24, 480, 720, 3), dtype=np.uint8)
    return judge, load_media(frames if modality == "video" else Image.fromarray(frames[0]))


# name -> judge and medium, numbers of questions, the one that counts
JUDGES: dict[str, tuple[Callable, tuple[int, ...], int]] = {
    "cogvlm2-video": (lambda: cogvlm2("video"), (5, 10, 29, 64), 29),
    "cogvlm2-image": (lambda: cogvlm2("image"), (5, 10, 30, 64), 30),
    "llava": (lambda: llava(word_tokenizer()), (5, 10, 30, 64), 30),
    "qwen2-vl": (lambda: qwen2_vl(word_tokenizer()), (5, 10, 30, 64), 30),
}


def compare(judge, media: Media, sizes: tuple[int, ...], target: int) -> None:
    """Prints seconds, ratio and arithmetic bound at each number of questions, and peak memory at `target`."""

    def plain(question: str):
        return judge.answer_plainly(media, question)

    def ours(count: int):
        return judge.answer([media], [QUESTIONS[:count]])[0]

    held = memory("VmRSS")
    peaks = peak_memory(lambda: plain(QUESTIONS[0])) - held, peak_memory(lambda: ours(target)) - held
    one = flops(lambda: plain(QUESTIONS[0]))
    print(f"\n{judge.name}\n  questions   plain s   ours s   ratio   arithmetic bound   largest difference")
    spent, answers = 0.0, []
    for count, question in enumerate(QUESTIONS[: max(sizes)], start=1):
        seconds, answer = timed(lambda question=question: plain(question))
        spent += seconds
        answers.append(answer)
        if count not in sizes:
            continue
        runs = [timed(lambda count=count: ours(count)) for _ in range(REPEATS)]
        fast, together = median(seconds for seconds, _ in runs), runs[0][1]
        gap = max(
            (torch.cat([getattr(item, name) for item in answers]) - getattr(together, name))
            .abs()
            .max()
            .item()
            for name in ("yes_logit", "no_logit")
        )
        bound = count * one / flops(lambda count=count: ours(count))
        print(
            f"  {count:9d} {spent:9.2f} {fast:8.2f} {spent / fast:6.1f}x {bound:17.1f}x {gap:20.1e}",
            flush=True,
        )
    print(
        f"  peak memory beyond the weights: plain {peaks[0]:.0f} MiB, ours {peaks[1]:.0f} MiB "
        f"({target} questions)"
    )


def timed(run: Callable):
    """Processor seconds of a run, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def flops(run: Callable) -> float:
    """Floating-point operations of a run, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(run: Callable) -> float:
    """MiB that the process held at most during a run (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    run()
    return memory("VmHWM")


def memory(field: str) -> float:
    """A field of the process's memory status, in MiB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "judges", nargs="*", metavar="JUDGE", help=f"any of {', '.join(JUDGES)}; default: all"
    )
    parser.add_argument("--questions", type=int, nargs="+", metavar="N", help=f"up to {len(QUESTIONS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.judges or JUDGES:
        build, sizes, target = JUDGES[name]
        judge, media = build()
        compare(judge, media, tuple(arguments.questions or sizes), target)


if __name__ == "__main__":
    main()
