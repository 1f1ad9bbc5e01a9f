"""All questions about a picture in one pass, against one question after another.

The plain loop does for every question what public releases do: prepare the pixels, encode them, run the
whole prompt, read the first token. Ours encodes once, runs the prefix once, and all questions over its cache.
Same random weights, same process, one thread. Seconds are those of the processor, so that other programs
count little, and the two ways take turns. The difference is that of all logits at the first answer position
(of yes and no for models of transformers). Where it counts, also both layouts of the questions, packed in one
sequence and a row a question.

    PYTHONPATH=. python benchmarks/one_pass_scoring.py
    PYTHONPATH=. python benchmarks/one_pass_scoring.py cogvlm2-video --questions 29
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from random_vlms import llava, qwen2_vl
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from rewards.cogvlm2.configuration import CogVLM2Config, CogVLM2VideoConfig
from rewards.cogvlm2.modeling import CogVLMForCausalLM, CogVLMVideoForCausalLM
from rewards.cogvlm2.processing import CogVLM2Processor
from rewards.judges.cogvlm2 import CogVLM2Judge
from rewards.judges.layouts import LAYOUTS
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


# name -> judge and medium, numbers of questions, the one that counts, and the ratio that is needed there
JUDGES: dict[str, tuple[Callable, tuple[int, ...], int, int | None]] = {
    "cogvlm2-video": (lambda: cogvlm2("video"), (5, 10, 29, 64), 29, 20),
    "cogvlm2-image": (lambda: cogvlm2("image"), (5, 10, 30, 64), 30, 18),
    "llava": (lambda: llava(word_tokenizer()), (5, 10, 30, 64), 30, None),
    "qwen2-vl": (lambda: qwen2_vl(word_tokenizer()), (5, 10, 30, 64), 30, None),
}


def ways(judge, media: Media) -> tuple[Callable[[str], Tensor], Callable[[list[str]], Tensor]]:
    """The plain way, a question to numbers [N], and ours, Q questions to [Q, N]."""
    if isinstance(judge, CogVLM2Judge):
        return partial(judge.logits_plainly, media), lambda asked: judge.logits([media], [asked])[0]

    def yes_no(answers) -> Tensor:
        return torch.stack([answers.yes_logit, answers.no_logit], dim=1)

    return (
        lambda question: yes_no(judge.answer_plainly(media, question))[0],
        lambda asked: yes_no(judge.answer(media, asked)),
    )


def compare(judge, media: Media, sizes: tuple[int, ...], target: int, needed: int | None) -> None:
    """Prints seconds, ratio and arithmetic bound at each number of questions, how both ways grow, and peak
    memory at `target`.
    """
    plain, ours = ways(judge, media)
    held = memory("VmRSS")
    peaks = {
        "plain": peak_memory(lambda: plain(QUESTIONS[0])) - held,
        "ours": peak_memory(lambda: ours(QUESTIONS[:target])) - held,
    }
    one = flops(lambda: plain(QUESTIONS[0]))
    print(f"\n{judge.name}\n  questions   plain s   ours s   ratio   arithmetic bound   largest difference")
    spent, answers, seconds = 0.0, [], {}
    for count, question in enumerate(QUESTIONS[: max(sizes)], start=1):
        took, answer = timed(lambda question=question: plain(question))
        spent += took
        answers.append(answer)
        if count not in sizes:
            continue
        asked = QUESTIONS[:count]
        runs = [timed(lambda asked=asked: ours(asked)) for _ in range(REPEATS)]
        fast, together = median(took for took, _ in runs), runs[0][1]
        gap = largest_difference(answers, together)
        bound = count * one / flops(lambda asked=asked: ours(asked))
        seconds[count] = spent, fast
        goal = f"   needed: {needed}x" if needed and count == target else ""
        print(
            f"  {count:9d} {spent:9.2f} {fast:8.2f} {spent / fast:6.1f}x {bound:17.1f}x {gap:20.1e}{goal}",
            flush=True,
        )
        if count == target:
            for judge.layouts.fixed in LAYOUTS:
                runs = [timed(lambda asked=asked: ours(asked)) for _ in range(REPEATS)]
                took, gap = median(took for took, _ in runs), largest_difference(answers, runs[0][1])
                peaks[judge.layouts.fixed] = peak_memory(lambda asked=asked: ours(asked)) - held
                print(f"    {judge.layouts.fixed}: {took:.2f} s, largest difference {gap:.1e}", flush=True)
            judge.layouts.fixed = None
    few, many = min(sizes), max(sizes)
    growth = [seconds[many][way] / seconds[few][way] for way in (0, 1)]
    print(f"  from {few} to {many} questions: plain {growth[0]:.1f}x the time, ours {growth[1]:.1f}x")
    listed = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
    print(f"  peak memory beyond the weights, {target} questions: {listed}", flush=True)


def largest_difference(alone: list[Tensor], together: Tensor) -> float:
    """Between the numbers of questions asked one by one and those of one pass."""
    return (torch.stack(alone) - together).abs().max().item()


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
    known = (*JUDGES, "all")
    listed = f"any of {', '.join(known)}, the default"
    parser.add_argument("judges", nargs="*", choices=known, default="all", metavar="JUDGE", help=listed)
    counts = range(1, len(QUESTIONS) + 1)
    parser.add_argument(
        "--questions", type=int, nargs="+", choices=counts, metavar="N", help=f"up to {len(QUESTIONS)}"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in JUDGES if "all" in arguments.judges else arguments.judges:
        build, sizes, target, needed = JUDGES[name]
        judge, media = build()
        compare(judge, media, tuple(arguments.questions or sizes), target, needed)


if __name__ == "__main__":
    main()
