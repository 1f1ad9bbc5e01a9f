"""Questions behind a cached prefix: packed in one sequence against a row a question, on this device.

    PYTHONPATH=. python benchmarks/layouts.py [--device cpu]

For prefixes of several lengths and numbers of questions: the seconds of both layouts over the same cache, in
turns (processor seconds on a CPU), their ratio, what `rewards.judges.layouts` would choose on a CPU, and the
largest difference of a hidden state. Random decoders: as wide as the quickstart's judge, and mid-sized.
"""

import argparse
from statistics import median
from time import perf_counter, process_time

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from rewards.judges.layouts import LAYOUTS, Layouts, counted, wait_for_device
from rewards.judges.packing import Packed, PrefixCache

SIZES = {  # hidden, intermediate, layers, heads, groups of keys and values
    "narrow": (96, 256, 3, 4, 4),
    "mid-sized": (512, 1792, 4, 8, 2),
}
SHAPES = {  # pictures, tokens of the prefix, questions
    "narrow": ((1, 20, 8), (16, 20, 8), (16, 70, 8), (16, 20, 20), (16, 70, 40), (16, 20, 60)),
    "mid-sized": ((1, 1634, 29), (1, 1634, 64), (1, 400, 29), (1, 100, 29), (1, 30, 29), (1, 30, 64)),
}
REPEATS = 5


def decoder(name: str, device: torch.device) -> LlamaModel:
    hidden, intermediate, layers, heads, groups = SIZES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        initializer_range=0.05,
    )
    return LlamaModel(config).eval().to(device)


@torch.inference_mode()
def compare(model: LlamaModel, pictures: int, prefix: int, count: int) -> str:
    """One line: both layouts of `count` questions of 9 to 13 words about so many pictures."""
    device, cache = model.device, PrefixCache()
    clock = process_time if device.type == "cpu" else perf_counter
    model(input_ids=torch.randint(512, (pictures, prefix), device=device), past_key_values=cache)
    questions = [
        [torch.randint(512, (9 + number % 5,)).tolist() for number in range(count)] for _ in range(pictures)
    ]

    def ask(packed: Packed) -> Tensor:
        rows = len(packed.input_ids)
        hidden = model(
            input_ids=packed.input_ids,
            position_ids=(packed.offsets + prefix).expand(rows, -1),
            attention_mask=packed.mask(prefix, model.dtype).expand(rows, -1, -1, -1),
            past_key_values=cache,
        ).last_hidden_state
        return hidden.gather(1, packed.ends[..., None].expand(-1, -1, hidden.shape[-1]))

    seconds, results = {layout: [] for layout in LAYOUTS}, {}
    for _ in range(REPEATS):
        for layout in LAYOUTS:
            start = clock()
            results[layout] = Layouts(model.config.hidden_size, layout).run(questions, prefix, device, ask)
            wait_for_device()
            seconds[layout].append(clock() - start)
    packed, batched = (median(seconds[layout]) for layout in LAYOUTS)
    gap = (results["packed"] - results["batched"]).abs().max().item()
    rule = counted(questions, prefix, model.config.hidden_size)
    return (
        f"  {pictures:8d} {prefix:7d} {count:10d} {packed:9.4f} {batched:10.4f} {batched / packed:16.2f}"
        f"   {rule:8}  {gap:8.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    for name, shapes in SHAPES.items():
        model = decoder(name, device)
        print(f"{name}, {device}")
        print("  pictures  prefix  questions  packed s  batched s  batched / packed   counted   largest gap")
        for shape in shapes:
            print(compare(model, *shape), flush=True)


if __name__ == "__main__":
    main()
